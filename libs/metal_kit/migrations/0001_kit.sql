-- Events on their way to the bus; a row lives until JetStream has acknowledged it.
-- xid is compared with the oldest running transaction: a row is only published when every transaction that could still
-- commit a row before it has ended.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    msg_id text NOT NULL,
    subject text NOT NULL,
    envelope bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);

CREATE FUNCTION wake_on_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('metalplane_' || TG_TABLE_SCHEMA, 'events');
    RETURN NULL;
END
$$;

-- A statement trigger: NOTIFY of one transaction with one payload is sent once however many rows there are.
CREATE TRIGGER outbox_wakes AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION wake_on_events();

-- What watchers read. A position is (xid, id): in this order the rows below the oldest running transaction are final.
CREATE TABLE change (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    entity text NOT NULL,
    entity_id text NOT NULL,
    version bigint NOT NULL,
    scope text NOT NULL,
    deleted boolean NOT NULL,
    payload bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id)
);
CREATE INDEX change_by_position ON change (entity, xid, id);
CREATE INDEX change_by_object ON change (entity, entity_id, id);
CREATE INDEX change_by_age ON change (created_at);

-- The greatest position that retention has removed; whoever stands before it has to list again.
CREATE TABLE change_floor (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    xid xid8 NOT NULL,
    id bigint NOT NULL
);
INSERT INTO change_floor (xid, id) VALUES ('0', 0);

-- The newest version that each consumer has taken in, per object.
CREATE TABLE consumed (
    consumer text NOT NULL,
    entity text NOT NULL,
    entity_id text NOT NULL,
    version bigint NOT NULL,
    event_id text NOT NULL,
    event_time timestamptz NOT NULL,
    deleted boolean NOT NULL,
    PRIMARY KEY (consumer, entity, entity_id)
);
CREATE INDEX consumed_deleted ON consumed (event_time) WHERE deleted;

-- Events that a consumer could not take in, put aside so that those behind them go on.
CREATE TABLE parked_event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer text NOT NULL,
    subject text NOT NULL,
    event_id text NOT NULL,
    entity text NOT NULL,
    entity_id text NOT NULL,
    error text NOT NULL,
    attempts int NOT NULL,
    envelope bytea NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (consumer, event_id)
);

-- Answers of requests that carried a request_id.
CREATE TABLE idempotency (
    caller text NOT NULL,
    method text NOT NULL,
    request_id text NOT NULL,
    request_hash bytea NOT NULL,
    response bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, method, request_id)
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);

-- One row a thing to reconcile. holder is null when nobody works on it; ready_at is when a worker may take it: the due
-- time, or the end of the holder's lease. woken_at collects what was asked for while somebody worked on it.
CREATE TABLE reconcile_queue (
    kind text NOT NULL,
    key text NOT NULL,
    ready_at timestamptz NOT NULL,
    woken_at timestamptz,
    holder text,
    fence bigint NOT NULL DEFAULT 0,
    attempts int NOT NULL DEFAULT 0,
    phase text NOT NULL DEFAULT '',
    phase_since timestamptz NOT NULL DEFAULT now(),
    overdue boolean NOT NULL DEFAULT false,
    outcome text NOT NULL DEFAULT '',
    reason text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, key)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
CREATE INDEX reconcile_queue_ready ON reconcile_queue (kind, ready_at);

-- Fencing numbers rise over all keys and survive the deletion of a row, so that no two claims ever share one.
CREATE SEQUENCE reconcile_fence AS bigint;

CREATE TABLE reconcile_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    key text NOT NULL,
    phase text NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL,
    message text NOT NULL,
    overdue boolean NOT NULL,
    worker text NOT NULL,
    fence bigint NOT NULL,
    times int NOT NULL DEFAULT 1,
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX reconcile_history_by_key ON reconcile_history (kind, key, id);
CREATE INDEX reconcile_history_by_age ON reconcile_history (last_at);

-- Who leads in something of which there may be one. epoch rises with every change of holder.
CREATE TABLE lease (
    name text PRIMARY KEY,
    holder text NOT NULL,
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
