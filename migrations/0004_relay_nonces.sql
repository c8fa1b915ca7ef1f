-- Nonces of tool calls that were used, so that a call whose proof was seen is refused by every
-- replica of the service, and after a restart.
--
-- A row says that one caller used one nonce; it is needed until the proof expires. Whoever may add
-- rows may not remove any: a proof can't be made usable again.

BEGIN;

CREATE TABLE relay_nonces (
    -- SHA-256 over caller and nonce.
    key        bytea       PRIMARY KEY CHECK (octet_length(key) = 32),
    expires_at timestamptz NOT NULL CHECK (isfinite(expires_at))
);
CREATE INDEX relay_nonces_expires_at ON relay_nonces (expires_at);

-- For how long rows outlive their expiry: the replicas' clocks may differ by that much, and a
-- nonce that could have been forgotten is taken as used.
CREATE FUNCTION agent_gateway_nonce_margin() RETURNS interval
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT interval '5 minutes' $$;

-- Forgets what has long expired; a bounded part of it at a time. Says how many rows that were.
CREATE FUNCTION agent_gateway_prune_nonces() RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    WITH pruned AS (
        DELETE FROM relay_nonces
        WHERE key IN (
            SELECT key FROM relay_nonces
            WHERE expires_at < now() - agent_gateway_nonce_margin()
            ORDER BY expires_at LIMIT 10000
            FOR UPDATE SKIP LOCKED)
        RETURNING 1
    )
    SELECT count(*) FROM pruned
$$;

DO $$
BEGIN
    -- Roles belong to the whole cluster, so another database may have made it.
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'agent_gateway_relay') THEN
        CREATE ROLE agent_gateway_relay NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END
$$;

REVOKE ALL ON FUNCTION agent_gateway_prune_nonces() FROM PUBLIC;
GRANT SELECT, INSERT ON relay_nonces TO agent_gateway_relay;
GRANT SELECT ON agent_gateway_schema_version TO agent_gateway_relay;
GRANT EXECUTE ON FUNCTION agent_gateway_prune_nonces() TO agent_gateway_relay;

INSERT INTO agent_gateway_schema_version (version) VALUES (4);

COMMIT;
