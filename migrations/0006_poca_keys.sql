-- Agents' keys for proofs of context (PoCA): Ed25519 keys under which an agent's tool calls are
-- proven, each signed by a principal as permissions are. A row counts for a tool only while the key
-- that signed it may delegate that tool's destination.

BEGIN;

CREATE TABLE poca_keys (
    poca_key_id        text        PRIMARY KEY CHECK (poca_key_id <> ''),
    signing_key_id     text        NOT NULL REFERENCES principal_signing_keys (key_id),
    subject_identity   text        NOT NULL CHECK (subject_identity <> ''),
    ed25519_public_key bytea       NOT NULL CHECK (octet_length(ed25519_public_key) = 32),
    not_before         timestamptz NOT NULL,
    not_after          timestamptz NOT NULL,
    revoked_at         timestamptz,
    signature          bytea       NOT NULL CHECK (octet_length(signature) <= 256),
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    CHECK (isfinite(not_before) AND isfinite(not_after) AND not_before < not_after)
);

-- The order in which a call's candidates are read, as for permissions.
CREATE INDEX poca_keys_lookup ON poca_keys
    (subject_identity, (revoked_at IS NULL) DESC, not_after DESC);
CREATE INDEX poca_keys_signing_key ON poca_keys (signing_key_id);

GRANT SELECT ON poca_keys TO agent_gateway_reader, agent_gateway_writer;
GRANT INSERT, UPDATE ON poca_keys TO agent_gateway_writer;

-- In the change feed an identity without destination and key stands for its PoCA keys.
CREATE FUNCTION agent_gateway_poca_key_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO registry_changes DEFAULT VALUES;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO registry_changes (subject_identity)
        SELECT DISTINCT subject_identity FROM new_rows;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO registry_changes (subject_identity)
        SELECT DISTINCT subject_identity FROM old_rows;
    ELSE
        INSERT INTO registry_changes (subject_identity)
        SELECT subject_identity FROM old_rows UNION SELECT subject_identity FROM new_rows;
    END IF;
    PERFORM pg_notify('agent_gateway_changes', '');
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION agent_gateway_poca_key_changed() FROM PUBLIC;

-- A trigger with transition tables serves one event alone.
CREATE TRIGGER registry_inserted AFTER INSERT ON poca_keys
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION agent_gateway_poca_key_changed();
CREATE TRIGGER registry_updated AFTER UPDATE ON poca_keys
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION agent_gateway_poca_key_changed();
CREATE TRIGGER registry_deleted AFTER DELETE ON poca_keys
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION agent_gateway_poca_key_changed();
CREATE TRIGGER registry_truncated AFTER TRUNCATE ON poca_keys
    FOR EACH STATEMENT EXECUTE FUNCTION agent_gateway_poca_key_changed();
-- Also where session_replication_role switches ordinary triggers off.
ALTER TABLE poca_keys ENABLE ALWAYS TRIGGER registry_inserted;
ALTER TABLE poca_keys ENABLE ALWAYS TRIGGER registry_updated;
ALTER TABLE poca_keys ENABLE ALWAYS TRIGGER registry_deleted;
ALTER TABLE poca_keys ENABLE ALWAYS TRIGGER registry_truncated;

INSERT INTO agent_gateway_schema_version (version) VALUES (6);

COMMIT;
