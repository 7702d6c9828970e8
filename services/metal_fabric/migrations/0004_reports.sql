-- What leaves tell about their last attempt and about themselves, and what fabric finds wrong in that.

-- Apart from leaf_sync, which is written with every sign of life.
CREATE TABLE leaf_report (
    switch_id text PRIMARY KEY REFERENCES switch ON DELETE CASCADE,
    -- The attempt that was reported last: which generation, the phase that it failed in, why it is not tried again.
    generation bigint NOT NULL DEFAULT 0,
    phase text NOT NULL DEFAULT '',
    quarantine text NOT NULL DEFAULT '',
    -- ApplyReport, BgpSessions, LldpNeighbours and Drift as they came.
    apply bytea,
    bgp bytea,
    lldp bytea,
    drift bytea,
    -- Of the BGP sessions: those to spines, those of them that are established, and all.
    uplink_sessions int NOT NULL DEFAULT 0,
    uplink_sessions_up int NOT NULL DEFAULT 0,
    sessions int NOT NULL DEFAULT 0,
    sessions_up int NOT NULL DEFAULT 0
);

-- What is wrong with a switch by what it last told, and since when.
CREATE TABLE finding (
    switch_id text NOT NULL REFERENCES switch ON DELETE CASCADE,
    source text NOT NULL CHECK (source IN ('bgp', 'lldp', 'drift', 'name')),
    code text NOT NULL,
    -- Port, VRF or the like; empty when the whole switch is meant.
    subject text NOT NULL,
    message text NOT NULL,
    since_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (switch_id, source, code, subject)
);

-- Whose NIC a leaf sees on a port.
CREATE INDEX cable_by_nic ON cable (nic_mac);

-- Which of a switch's ports lead to spines.
CREATE INDEX port_uplink ON port (switch_id) WHERE uplink;

-- The box that speaks for the leaf, as it names itself; empty when it does not.
ALTER TABLE leaf_sync ADD COLUMN chassis text NOT NULL DEFAULT '';
