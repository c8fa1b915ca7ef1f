-- The root of trust: a principal's key and a scope may bear the signature of a root, over a text
-- that names this registry. Where the service has roots in its own configuration, rows without
-- one count for nothing, whoever wrote them.

BEGIN;

-- Null where no root signed: as the existing scripts write rows, and as keys and scopes wait for
-- the root's holder. A signature counts only with the row's other columns as they were signed.
ALTER TABLE principal_signing_keys
    ADD COLUMN root_signature bytea CHECK (octet_length(root_signature) <= 256);
ALTER TABLE principal_key_permissions
    ADD COLUMN root_signature bytea CHECK (octet_length(root_signature) <= 256);

-- What roots call this registry; one row. For people to read and to put into the service's
-- configuration: the service takes it from there alone.
CREATE TABLE registry_identity (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    registry_id text    NOT NULL DEFAULT gen_random_uuid() CHECK (registry_id <> '')
);
INSERT INTO registry_identity DEFAULT VALUES;
GRANT SELECT ON registry_identity TO agent_gateway_reader, agent_gateway_writer;

INSERT INTO agent_gateway_schema_version (version) VALUES (3);

COMMIT;
