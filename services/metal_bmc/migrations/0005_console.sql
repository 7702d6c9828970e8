-- Which replica has the serial console of a machine open: a BMC has one, and two replicas would take it from each other.
CREATE TABLE console (
    machine uuid PRIMARY KEY REFERENCES endpoint ON DELETE CASCADE,
    partition text NOT NULL,
    holder text NOT NULL,
    expires_at timestamptz NOT NULL,
    -- Nobody reads: whoever is asked for it may have it.
    idle boolean NOT NULL DEFAULT false,
    -- What the BMC calls our session; NULL while it is not open, empty when the BMC does not tell.
    session bytea
);
