ALTER TABLE endpoint
    -- Who carries out orders; 'manual': there is no BMC, a person does it, and host and login are empty.
    ADD COLUMN driver text NOT NULL DEFAULT 'ipmi' CHECK (driver IN ('ipmi', 'redfish', 'manual')),
    -- What the BMC can do, as it last said. Empty: not known yet, so nothing is refused for it.
    ADD COLUMN capabilities text[] NOT NULL DEFAULT '{}',
    -- What people know the machine by besides its UUID; empty: nothing.
    ADD COLUMN serial text NOT NULL DEFAULT '',
    -- The system GUID as the BMC sent it, 16 bytes; NULL: none. Its byte order is not to be known from itself.
    ADD COLUMN guid bytea CHECK (octet_length(guid) = 16),
    -- IANA enterprise number of the BMC's maker; 0: not known.
    ADD COLUMN manufacturer int NOT NULL DEFAULT 0,
    -- The MAC address that the BMC itself tells; empty: it does not.
    ADD COLUMN said_mac text NOT NULL DEFAULT '',
    -- Whether that is the machine's BMC: '' not known, or a metal_bmc.identity.Match.
    ADD COLUMN identity text NOT NULL DEFAULT '';
CREATE INDEX endpoint_other_machine ON endpoint (partition, machine) WHERE identity = 'other';

ALTER TABLE command
    -- Carried out by a person: its plan is another one than a BMC's.
    ADD COLUMN by_hand boolean NOT NULL DEFAULT false,
    -- The boot override of commands that set one: NULL leaves it to the action.
    ADD COLUMN boot_persistent boolean,
    ADD COLUMN boot_mode text CHECK (boot_mode IN ('uefi', 'bios')),
    -- Soft off: what the system has until it is switched off hard; NULL: never.
    ADD COLUMN hard_after interval;

-- What a person is to do at a machine without a BMC, and what became of it.
CREATE TABLE manual_task (
    id uuid PRIMARY KEY,
    machine uuid NOT NULL,
    partition text NOT NULL,
    -- The command that waits for it; NULL: the power that is wanted does.
    command uuid,
    action text NOT NULL,
    state text NOT NULL CHECK (state IN ('open', 'confirmed', 'declined', 'withdrawn')),
    -- Why it was declined or withdrawn.
    note text NOT NULL DEFAULT '',
    -- Who confirmed or declined it.
    person text NOT NULL DEFAULT '',
    -- When nobody waits for it any more; NULL: as long as the power is wanted.
    deadline timestamptz,
    reminders int NOT NULL DEFAULT 0,
    remind_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    version bigint NOT NULL DEFAULT 1
);
-- A wish is one task, however often it is looked at.
CREATE UNIQUE INDEX manual_task_of_command ON manual_task (command) WHERE command IS NOT NULL;
CREATE UNIQUE INDEX manual_task_of_wish ON manual_task (machine) WHERE command IS NULL AND state = 'open';
CREATE INDEX manual_task_by_machine ON manual_task (machine, id);
CREATE INDEX manual_task_open ON manual_task (partition, id) WHERE state = 'open';
CREATE INDEX manual_task_remind ON manual_task (partition, remind_at) WHERE state = 'open';
CREATE INDEX manual_task_ended ON manual_task (ended_at) WHERE state <> 'open';
-- As endpoint_unsettled, of machines that have no password and no address because a person switches them.
CREATE INDEX endpoint_unsettled_by_hand ON endpoint (partition)
    WHERE driver = 'manual' AND desired_on IS NOT NULL AND reported_on IS DISTINCT FROM desired_on;
