-- Tenants, projects, members, tokens.

CREATE TABLE tenant (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    description text NOT NULL DEFAULT '',
    labels jsonb NOT NULL DEFAULT '{}',
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE project (
    id uuid PRIMARY KEY,
    tenant uuid NOT NULL REFERENCES tenant,
    name text NOT NULL,
    description text NOT NULL DEFAULT '',
    labels jsonb NOT NULL DEFAULT '{}',
    machine_quota int NOT NULL DEFAULT 0 CHECK (machine_quota >= 0),
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (tenant, name)
);

CREATE INDEX project_name ON project (name, id);

CREATE TABLE tenant_member (
    tenant uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    username text NOT NULL,
    role smallint NOT NULL CHECK (role BETWEEN 1 AND 3),
    PRIMARY KEY (tenant, username)
);

CREATE INDEX tenant_member_user ON tenant_member (username);

CREATE TABLE project_member (
    project uuid NOT NULL REFERENCES project ON DELETE CASCADE,
    username text NOT NULL,
    role smallint NOT NULL CHECK (role BETWEEN 1 AND 3),
    PRIMARY KEY (project, username)
);

CREATE INDEX project_member_user ON project_member (username);

-- What is known of a token; its secret is a signature and is stored nowhere.
CREATE TABLE token (
    id uuid PRIMARY KEY,
    username text NOT NULL,
    description text NOT NULL DEFAULT '',
    project_roles jsonb NOT NULL DEFAULT '{}',
    tenant_roles jsonb NOT NULL DEFAULT '{}',
    plane_role smallint NOT NULL DEFAULT 0 CHECK (plane_role BETWEEN 0 AND 2),
    -- A plane operator's grants stand as written; others are cut to the user's memberships whenever they are used.
    by_operator boolean NOT NULL,
    creator text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    expire_time timestamptz NOT NULL,
    revoke_time timestamptz
);

CREATE INDEX token_user ON token (username, id);
CREATE INDEX token_expired ON token (expire_time);
