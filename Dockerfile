# One image for each program: docker build --target authz|tools|sidecar|agent|swtpm|services .
#
# The build stage is shared; its cache mounts keep dependencies and earlier builds.

FROM rust:1-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends libtss2-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# `off` builds in half the time: compose.yaml's default, for those who try things.
ARG CARGO_PROFILE_RELEASE_LTO=thin
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bins -p authz-service -p registry-cli -p sidecar -p demo \
 && install -D -t /out target/release/agent-gateway-*[!.d]

# One user in all images: what tells containers apart is which volumes and networks they have. New
# volumes take their owner from these folders.
FROM debian:bookworm-slim AS base
RUN groupadd --system --gid 10001 agent-gateway \
 && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin agent-gateway \
 && install -d -o agent-gateway -g agent-gateway -m 700 /var/lib/agent-gateway /trust
COPY --chmod=755 demo/compose/ready /usr/local/bin/ready
USER 10001:10001

# The decision point.
FROM base AS authz
COPY --from=build /out/agent-gateway-authz /usr/local/bin/
COPY contracts /usr/local/share/agent-gateway/contracts
COPY policy /usr/local/share/agent-gateway/policy
COPY --chmod=755 demo/compose/authz /usr/local/bin/start-authz
ENTRYPOINT ["agent-gateway-authz"]

# The services and tools that the demo's agent talks to.
FROM base AS services
COPY --from=build /out/agent-gateway-mock-service /out/agent-gateway-mock-tool /usr/local/bin/

# A simulated TPM.
FROM base AS swtpm
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends swtpm \
 && rm -rf /var/lib/apt/lists/*
COPY --chmod=755 demo/compose/tpm /usr/local/bin/
USER 10001:10001
ENTRYPOINT ["tpm", "0.0.0.0"]

FROM base AS tpm-client
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends libtss2-esys-3.0.2-0 libtss2-mu0 \
        libtss2-tctildr0 libtss2-tcti-device0 libtss2-tcti-swtpm0 \
 && rm -rf /var/lib/apt/lists/*
USER 10001:10001

# The agent's way out.
FROM tpm-client AS sidecar
COPY --from=build /out/agent-gateway-sidecar /usr/local/bin/
COPY --chmod=755 demo/compose/sidecar /usr/local/bin/start-sidecar
ENTRYPOINT ["agent-gateway-sidecar"]

# Where an agent would run: an HTTP client, and the sidecar's exec, which gives it the proxy.
FROM sidecar AS agent
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/*
USER 10001:10001

# Setting up, migrating, granting: the registry CLI, and what its scripts need.
FROM tpm-client AS tools
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends jq openssl postgresql-client swtpm \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/agent-gateway-authz /out/agent-gateway-registry /usr/local/bin/
COPY --chmod=755 demo/generate-server-certs.sh demo/compose/setup demo/compose/migrate \
     demo/compose/enrol demo/compose/registry demo/compose/tpm /usr/local/bin/
COPY envoy/envoy.yaml envoy/mesh/authorization-mtls.yaml /usr/local/share/agent-gateway/
USER 10001:10001
