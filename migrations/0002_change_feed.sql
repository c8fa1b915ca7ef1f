-- The change feed: every write to the registry leaves a row that readers follow, so that cached
-- decisions and open tunnels never outlive what they rest on.
--
-- Readers go by transaction id, not by seq: sequence numbers are handed out in one order and
-- committed in another. NOTIFY only wakes them; the table is the truth.

BEGIN;

CREATE TABLE registry_changes (
    seq                         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid                         xid8        NOT NULL DEFAULT pg_current_xact_id(),
    changed_at                  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What changed: one agent key's permission for one destination…
    subject_identity            text,
    destination                 text,
    subject_public_key_spki_der bytea,
    -- …or a signing key or its scopes; or, with all of these null, everything.
    signing_key_id              text
);
CREATE INDEX registry_changes_xid ON registry_changes (xid);

-- The greatest transaction id whose changes may be gone; one row.
CREATE TABLE registry_changes_pruned (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    up_to    xid8    NOT NULL
);
INSERT INTO registry_changes_pruned (up_to) VALUES ('0');

-- Triggers run as the tables' owner: a writer of permissions needs no right on the feed, and
-- can't forge or hold back a change. The search path is fixed, or a writer's own would choose
-- the tables.
CREATE FUNCTION agent_gateway_permission_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO registry_changes DEFAULT VALUES;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO registry_changes (subject_identity, destination, subject_public_key_spki_der)
        SELECT DISTINCT subject_identity, destination, subject_public_key_spki_der FROM new_rows;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO registry_changes (subject_identity, destination, subject_public_key_spki_der)
        SELECT DISTINCT subject_identity, destination, subject_public_key_spki_der FROM old_rows;
    ELSE
        -- Both: a row moved from one agent to another changes what either may do.
        INSERT INTO registry_changes (subject_identity, destination, subject_public_key_spki_der)
        SELECT subject_identity, destination, subject_public_key_spki_der FROM old_rows
        UNION
        SELECT subject_identity, destination, subject_public_key_spki_der FROM new_rows;
    END IF;
    PERFORM pg_notify('agent_gateway_changes', '');
    RETURN NULL;
END
$$;

CREATE FUNCTION agent_gateway_key_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO registry_changes DEFAULT VALUES;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO registry_changes (signing_key_id) SELECT DISTINCT key_id FROM new_rows;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO registry_changes (signing_key_id) SELECT DISTINCT key_id FROM old_rows;
    ELSE
        INSERT INTO registry_changes (signing_key_id)
        SELECT key_id FROM old_rows UNION SELECT key_id FROM new_rows;
    END IF;
    PERFORM pg_notify('agent_gateway_changes', '');
    RETURN NULL;
END
$$;

CREATE FUNCTION agent_gateway_scope_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO registry_changes DEFAULT VALUES;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO registry_changes (signing_key_id) SELECT DISTINCT signing_key_id FROM new_rows;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO registry_changes (signing_key_id) SELECT DISTINCT signing_key_id FROM old_rows;
    ELSE
        INSERT INTO registry_changes (signing_key_id)
        SELECT signing_key_id FROM old_rows UNION SELECT signing_key_id FROM new_rows;
    END IF;
    PERFORM pg_notify('agent_gateway_changes', '');
    RETURN NULL;
END
$$;

-- A trigger with transition tables serves one event alone.
DO $$
DECLARE
    watched text[];
BEGIN
    FOREACH watched SLICE 1 IN ARRAY ARRAY[
        ['permission_registry', 'agent_gateway_permission_changed'],
        ['principal_signing_keys', 'agent_gateway_key_changed'],
        ['principal_key_permissions', 'agent_gateway_scope_changed']
    ] LOOP
        EXECUTE format(
            'CREATE TRIGGER registry_inserted AFTER INSERT ON %1$I
                 REFERENCING NEW TABLE AS new_rows
                 FOR EACH STATEMENT EXECUTE FUNCTION %2$I();
             CREATE TRIGGER registry_updated AFTER UPDATE ON %1$I
                 REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
                 FOR EACH STATEMENT EXECUTE FUNCTION %2$I();
             CREATE TRIGGER registry_deleted AFTER DELETE ON %1$I
                 REFERENCING OLD TABLE AS old_rows
                 FOR EACH STATEMENT EXECUTE FUNCTION %2$I();
             CREATE TRIGGER registry_truncated AFTER TRUNCATE ON %1$I
                 FOR EACH STATEMENT EXECUTE FUNCTION %2$I();
             -- Also where session_replication_role switches ordinary triggers off.
             ALTER TABLE %1$I ENABLE ALWAYS TRIGGER registry_inserted;
             ALTER TABLE %1$I ENABLE ALWAYS TRIGGER registry_updated;
             ALTER TABLE %1$I ENABLE ALWAYS TRIGGER registry_deleted;
             ALTER TABLE %1$I ENABLE ALWAYS TRIGGER registry_truncated',
            watched[1], watched[2]);
    END LOOP;
END
$$;

-- Forgets changes that every reader has long seen, and records how far. One caller at a time;
-- writers are never waited for, nor made to wait.
CREATE FUNCTION agent_gateway_prune_changes() RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    gone xid8;
    pruned bigint;
BEGIN
    PERFORM FROM registry_changes_pruned FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- Below the snapshot's xmin, so that no transaction still open can add to what is pruned.
    WITH deleted AS (
        DELETE FROM registry_changes
        WHERE seq IN (
            SELECT seq FROM registry_changes
            WHERE changed_at < clock_timestamp() - interval '10 minutes'
              AND xid < pg_snapshot_xmin(pg_current_snapshot())
            ORDER BY seq LIMIT 10000)
        RETURNING xid
    )
    SELECT (SELECT xid FROM deleted ORDER BY xid DESC LIMIT 1), (SELECT count(*) FROM deleted)
    INTO gone, pruned;
    UPDATE registry_changes_pruned SET up_to = gone WHERE up_to < gone;
    RETURN pruned;
END
$$;

REVOKE ALL ON FUNCTION agent_gateway_permission_changed(), agent_gateway_key_changed(),
    agent_gateway_scope_changed(), agent_gateway_prune_changes() FROM PUBLIC;
GRANT SELECT ON registry_changes, registry_changes_pruned TO agent_gateway_reader, agent_gateway_writer;
GRANT EXECUTE ON FUNCTION agent_gateway_prune_changes() TO agent_gateway_reader, agent_gateway_writer;

INSERT INTO agent_gateway_schema_version (version) VALUES (2);

COMMIT;
