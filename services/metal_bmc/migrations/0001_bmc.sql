-- The BMC of a machine: where it is, how to log in, what is wanted and what it says.
CREATE TABLE endpoint (
    machine uuid PRIMARY KEY,
    partition text NOT NULL,
    -- Empty after another machine's BMC proved to have the address.
    host text NOT NULL,
    port int NOT NULL CHECK (port BETWEEN 1 AND 65535),
    mac text NOT NULL DEFAULT '',
    login text NOT NULL,
    -- AES-256-GCM, bound to the machine; see metal_bmc.credentials. NULL: no password stored.
    sealed bytea,
    desired_on boolean,
    reported_on boolean,
    observed_at timestamptz,
    error_reason text NOT NULL DEFAULT '',
    error text NOT NULL DEFAULT '',
    failures int NOT NULL DEFAULT 0,
    -- Logins refused in a row with these credentials. At two the BMC is left alone until they change.
    refused_logins int NOT NULL DEFAULT 0 CHECK (refused_logins BETWEEN 0 AND 2),
    firmware text NOT NULL DEFAULT '',
    fru jsonb NOT NULL DEFAULT '{}',
    inspected_at timestamptz,
    poll_at timestamptz NOT NULL DEFAULT now(),
    -- When inventory has to hear of it again; 'infinity' as long as there is nothing to tell.
    report_at timestamptz NOT NULL DEFAULT 'infinity',
    -- revision counts what people change (the etag); version counts every change that an event tells of.
    revision bigint NOT NULL DEFAULT 1,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- Two machines behind one address would mean that switching one off switches the other off.
CREATE UNIQUE INDEX endpoint_address ON endpoint (partition, host, port) WHERE host <> '';
CREATE UNIQUE INDEX endpoint_mac ON endpoint (partition, mac) WHERE mac <> '';
CREATE INDEX endpoint_poll ON endpoint (poll_at);
CREATE INDEX endpoint_report ON endpoint (report_at) WHERE report_at <> 'infinity';

-- Versions of an object never go back, not even when it is deleted and registered again: consumers would drop the new
-- one's events as old.
CREATE SEQUENCE endpoint_version AS bigint;

CREATE TABLE command (
    id uuid PRIMARY KEY,
    machine uuid NOT NULL,
    partition text NOT NULL,
    action text NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'expired')),
    -- Position in the action's plan, tries on it, and when it was entered.
    step int NOT NULL DEFAULT 0,
    tries int NOT NULL DEFAULT 0,
    step_at timestamptz NOT NULL DEFAULT now(),
    -- Set before an order that must not be repeated is sent, and never cleared.
    sent_at timestamptz,
    reason text NOT NULL DEFAULT '',
    error text NOT NULL DEFAULT '',
    allocation uuid,
    requester text NOT NULL,
    deadline timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    ended_at timestamptz,
    version bigint NOT NULL DEFAULT 1
);
CREATE INDEX command_open ON command (machine, id) WHERE state IN ('pending', 'running');
CREATE INDEX command_by_machine ON command (machine, id DESC);

-- BMCs that a lease file showed and that are not registered: what became of the one try with the factory login.
CREATE TABLE sighting (
    partition text NOT NULL,
    mac text NOT NULL,
    host text NOT NULL,
    reason text NOT NULL DEFAULT '',
    refused boolean NOT NULL DEFAULT false,
    tries int NOT NULL DEFAULT 0,
    try_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (partition, mac)
);
