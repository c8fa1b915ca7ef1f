-- The signed authorization registry: principals' keys, what each may delegate, and the
-- permissions they signed. Names and columns are those of the existing registry scripts.
--
-- Runs by `agent-gateway-authz migrate` or by `psql -v ON_ERROR_STOP=1 -f`, all or nothing.

BEGIN;

CREATE TABLE agent_gateway_schema_version (
    version    integer     PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE principal_signing_keys (
    key_id              text        PRIMARY KEY CHECK (key_id <> ''),
    algorithm           text        NOT NULL CHECK (algorithm = 'ecdsa_p256_sha256'),
    public_key_spki_der bytea       NOT NULL UNIQUE,
    not_before          timestamptz NOT NULL,
    not_after           timestamptz NOT NULL,
    revoked_at          timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    -- 'infinity' has no RFC 3339 form, and so none in signed text.
    CHECK (isfinite(not_before) AND isfinite(not_after) AND not_before < not_after)
);

CREATE TABLE principal_key_permissions (
    id             bigserial   PRIMARY KEY,
    signing_key_id text        NOT NULL REFERENCES principal_signing_keys (key_id),
    destination    text        NOT NULL CHECK (destination <> ''),
    not_before     timestamptz NOT NULL,
    not_after      timestamptz NOT NULL,
    revoked_at     timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    CHECK (isfinite(not_before) AND isfinite(not_after) AND not_before < not_after)
);

CREATE TABLE permission_registry (
    permission_id               text        PRIMARY KEY CHECK (permission_id <> ''),
    signing_key_id              text        NOT NULL REFERENCES principal_signing_keys (key_id),
    subject_identity            text        NOT NULL CHECK (subject_identity <> ''),
    subject_public_key_spki_der bytea       NOT NULL,
    destination                 text        NOT NULL CHECK (destination <> ''),
    not_before                  timestamptz NOT NULL,
    not_after                   timestamptz NOT NULL,
    revoked_at                  timestamptz,
    -- A DER signature has 72 bytes at most; far larger ones would be read at every decision.
    signature                   bytea       NOT NULL CHECK (octet_length(signature) <= 256),
    created_at                  timestamptz NOT NULL DEFAULT now(),
    updated_at                  timestamptz NOT NULL DEFAULT now(),
    CHECK (isfinite(not_before) AND isfinite(not_after) AND not_before < not_after)
);

-- The order of the decision's candidates (unrevoked first, then the longest lived), so that the
-- first 16 are read from the index alone, however many rows were revoked before.
CREATE INDEX permission_registry_lookup ON permission_registry
    (subject_identity, destination, subject_public_key_spki_der,
     (revoked_at IS NULL) DESC, not_after DESC);
CREATE INDEX permission_registry_signing_key ON permission_registry (signing_key_id);
CREATE INDEX principal_key_permissions_lookup ON principal_key_permissions
    (signing_key_id, destination, (revoked_at IS NULL) DESC, not_after DESC);

-- Group roles: a login role becomes a member of the one it needs. Roles belong to the whole
-- cluster, so another database, or one being migrated at the same time, may have made them.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['agent_gateway_reader', 'agent_gateway_writer'] LOOP
        -- An owner without CREATEROLE can migrate where they exist.
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = role_name);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;

-- The service decides with SELECT alone.
GRANT SELECT ON agent_gateway_schema_version, principal_signing_keys,
    principal_key_permissions, permission_registry
    TO agent_gateway_reader, agent_gateway_writer;
-- The registry CLI adds and revokes; nothing is ever deleted by our own tools.
GRANT INSERT, UPDATE ON principal_signing_keys, principal_key_permissions, permission_registry
    TO agent_gateway_writer;
GRANT USAGE ON SEQUENCE principal_key_permissions_id_seq TO agent_gateway_writer;

INSERT INTO agent_gateway_schema_version (version) VALUES (1);

COMMIT;
