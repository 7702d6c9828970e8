-- Tokens that a login made, what each token was made with, and ID tokens that have been exchanged.

-- A login's token has its user's memberships beside the plane role that a group gave.
ALTER TABLE token ADD COLUMN login boolean NOT NULL DEFAULT false;
-- The end of the plane role that a group gave, for the token of the login and all that are made with it.
ALTER TABLE token ADD COLUMN plane_until timestamptz;
-- No foreign key: tokens are forgotten some time after their end.
ALTER TABLE token ADD COLUMN made_with uuid;

CREATE INDEX token_made_with ON token (made_with) WHERE made_with IS NOT NULL;
CREATE INDEX token_living ON token (username, login, expire_time) WHERE revoke_time IS NULL;

-- SHA-256 of the signed part. The signature is left out: some kinds can be rewritten into another one that verifies.
CREATE TABLE exchanged_id_token (
    digest bytea PRIMARY KEY,
    useless_after timestamptz NOT NULL
);

CREATE INDEX exchanged_id_token_end ON exchanged_id_token (useless_after);
