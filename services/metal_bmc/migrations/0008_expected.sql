-- Machines that somebody said would come, to be compared with what is found.
CREATE TABLE expected_machine (
    id uuid PRIMARY KEY,
    partition text NOT NULL,
    -- Of its BMC; empty: not known. At least one of mac and serial is set.
    mac text NOT NULL DEFAULT '',
    serial text NOT NULL DEFAULT '',
    login text NOT NULL DEFAULT '',
    -- The initial password, sealed as those of endpoints are; NULL: none, or used.
    sealed bytea,
    vendor text NOT NULL DEFAULT '',
    model text NOT NULL DEFAULT '',
    driver text NOT NULL DEFAULT 'ipmi' CHECK (driver IN ('ipmi', 'redfish')),
    rack text NOT NULL DEFAULT '',
    -- Which machine it turned out to be; NULL: not found.
    machine uuid,
    found_at timestamptz,
    revision bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (mac <> '' OR serial <> '')
);
CREATE INDEX expected_machine_partition ON expected_machine (partition, id);
CREATE UNIQUE INDEX expected_machine_mac ON expected_machine (partition, mac) WHERE mac <> '';
CREATE UNIQUE INDEX expected_machine_serial ON expected_machine (partition, lower(serial)) WHERE serial <> '';
CREATE UNIQUE INDEX expected_machine_machine ON expected_machine (machine) WHERE machine IS NOT NULL;
CREATE INDEX expected_machine_open ON expected_machine (partition, id) WHERE machine IS NULL;

-- What is not as expected now.
CREATE TABLE expected_difference (
    expected uuid NOT NULL REFERENCES expected_machine (id) ON DELETE CASCADE,
    field text NOT NULL,
    wanted text NOT NULL,
    seen text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (expected, field)
);

-- When discovery registered it; NULL: people did.
ALTER TABLE endpoint ADD COLUMN discovered_at timestamptz;
CREATE INDEX endpoint_discovered ON endpoint (partition, machine) WHERE discovered_at IS NOT NULL;
ALTER TABLE sighting ADD COLUMN first_seen_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX sighting_not_expected ON sighting (partition, mac) WHERE reason = 'NOT_EXPECTED';
-- Whether a range of addresses that is looked through holds one that is known already.
CREATE INDEX sighting_host ON sighting (partition, host);
