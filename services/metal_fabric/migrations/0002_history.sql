-- Settings of partitions, and desired states that are held at an older content.

-- `version` 0 stands for nothing set. A leaf has its own copy, because settings reach the leaves one after the other.
CREATE TABLE fabric_settings (
    partition text PRIMARY KEY,
    content jsonb NOT NULL,
    version bigint NOT NULL,
    -- Whether a leaf of the partition may still have older ones.
    rolling boolean NOT NULL,
    update_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX fabric_settings_rolling ON fabric_settings (partition) WHERE rolling;

ALTER TABLE switch
    ADD COLUMN settings jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN settings_version bigint NOT NULL DEFAULT 0;

-- Generation whose content a generation was rolled back to; 0 for one that followed the plane.
ALTER TABLE switch_generation ADD COLUMN pinned_to bigint NOT NULL DEFAULT 0;

CREATE TABLE switch_pin (
    switch_id text PRIMARY KEY REFERENCES switch ON DELETE CASCADE,
    -- Generation that the content is of. Its row may be gone: the content is kept here.
    generation bigint NOT NULL,
    state bytea NOT NULL,
    reason text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
