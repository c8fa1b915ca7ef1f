-- A heartbeat for standbys. A service that reads a standby knows how old its data is by the commit
-- time of the last transaction that was replayed there; so an idle primary has to commit one now
-- and then. Services that read the primary see to that; cron may call this too.

BEGIN;

-- A transaction that has an id leaves a commit record, and nothing else: no row, no wait for the
-- disk or for a synchronous standby. Where nobody replicates it leaves nothing at all.
CREATE FUNCTION agent_gateway_heartbeat() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_stat_replication) THEN
        PERFORM pg_current_xact_id();
    END IF;
END
$$;

REVOKE ALL ON FUNCTION agent_gateway_heartbeat() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agent_gateway_heartbeat() TO agent_gateway_reader, agent_gateway_writer;

INSERT INTO agent_gateway_schema_version (version) VALUES (5);

COMMIT;
