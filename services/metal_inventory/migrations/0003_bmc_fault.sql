-- What stands in the way of using the BMC, as its reports say: set and cleared by them alone, whatever an operator decided
-- about the machine. Empty: nothing.
ALTER TABLE bmc
    ADD COLUMN fault_reason text NOT NULL DEFAULT '',
    ADD COLUMN fault text NOT NULL DEFAULT '',
    ADD COLUMN fault_since timestamptz;
