-- Super networks whose children of different projects may overlap: each project that has children of one has a namespace
-- of its own, with a copy of the super network's prefixes as containers. The copies are rows of `prefix` with the super
-- network's id; what is copied is kept with the super network, which may have no copy at all.

ALTER TABLE network
    ADD COLUMN copied_prefixes cidr[] NOT NULL DEFAULT '{}',
    DROP CONSTRAINT network_type_check,
    ADD CONSTRAINT network_type_check
        CHECK (type IN ('super', 'super_namespaced', 'child', 'child_shared', 'external', 'underlay')),
    ADD CONSTRAINT network_copied_prefixes_check CHECK ((type = 'super_namespaced') = (copied_prefixes <> '{}')),
    -- Its children have overlapping addresses, and no VRF could hold two of them.
    ADD CONSTRAINT network_namespaced_check CHECK (type <> 'super_namespaced' OR (vrf IS NULL AND partition_id = ''));

-- Made for the child networks of its project, and gone with the last of them.
ALTER TABLE namespace ADD COLUMN for_networks boolean NOT NULL DEFAULT false;
CREATE UNIQUE INDEX namespace_for_networks ON namespace (project_id) WHERE for_networks;

-- A network has prefixes in several namespaces now: the order of a list of them.
DROP INDEX prefix_network;
CREATE INDEX prefix_network ON prefix (network_id, namespace_id, cidr);

-- What a project that has no network may be offered.
DROP INDEX network_offered;
CREATE INDEX network_offered ON network (id)
    WHERE type IN ('super', 'super_namespaced', 'external') AND project_id = '';
