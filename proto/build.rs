//! Compiles our own .proto files to Rust, and ours and Envoy's to descriptor sets for gRPC
//! reflection. protox does it in-process, so no protoc is needed.
//!
//! Envoy's .proto files are read where the envoy-types crate ships them; no copy of them is kept
//! here that could differ from the types the service is compiled against.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use protox::Compiler;

const OWN: &[&str] = &[
    "agent_gateway/admin/v1/decision.proto",
    "agent_gateway/admin/v1/operations.proto",
];

const ENVOY: &[&str] = &[
    "envoy/service/auth/v3/external_auth.proto",
    "envoy/service/ext_proc/v3/external_processor.proto",
];

/// The roots that Envoy's imports are relative to, below the `proto` folder of envoy-types.
const ENVOY_ROOTS: &[&str] = &[
    "data-plane-api",
    "xds",
    "protoc-gen-validate",
    "googleapis",
    "cel-spec/proto",
    "opentelemetry-proto",
    "client_model",
];

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(required_env("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(required_env("OUT_DIR")?);
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=agent_gateway");
    if let Some(lock) = lock_file(&here) {
        // Another version of envoy-types brings other .proto files.
        println!("cargo:rerun-if-changed={}", lock.display());
    }
    compile_own(&here, &out)?;
    compile_envoy(&here, &out)
}

fn compile_own(here: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut compiler = Compiler::new([here])?;
    // The comments become Rust docs, and grpcurl shows them.
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(OWN)?;
    fs::write(out.join("own.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

fn compile_envoy(here: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let shipped = envoy_protos(here)?;
    let mut compiler = Compiler::new(ENVOY_ROOTS.iter().map(|root| shipped.join(root)))?;
    // Without comments the set is a quarter of the size. Reflection needs every import.
    compiler.include_source_info(false).include_imports(true);
    compiler.open_files(ENVOY)?;
    fs::write(out.join("envoy.bin"), compiler.encode_file_descriptor_set())?;
    Ok(())
}

/// The folder of .proto files in the envoy-types package that this build uses.
fn envoy_protos(here: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // What a build needs is fetched before build scripts run, but `cargo metadata` looks at the
    // whole workspace: where only a part of it has been fetched, the network is needed after all.
    let metadata = match cargo_metadata(here, &["--offline"]) {
        Ok(metadata) => metadata,
        Err(offline) => cargo_metadata(here, &[]).map_err(|online| {
            format!("{offline}\nand with the network: {online}\nhint: run `cargo fetch` once")
        })?,
    };
    let packages = metadata.get("packages").and_then(|value| value.as_array());
    let manifest = packages
        .into_iter()
        .flatten()
        .find(|package| {
            package
                .get("name")
                .is_some_and(|name| name == "envoy-types")
        })
        .and_then(|package| package.get("manifest_path")?.as_str())
        .ok_or("cargo metadata lists no package envoy-types")?;
    let folder = Path::new(manifest).with_file_name("proto");
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(format!("envoy-types ships no folder {}", folder.display()).into())
    }
}

fn cargo_metadata(here: &Path, extra: &[&str]) -> Result<serde_json::Value, Box<dyn Error>> {
    let mut cargo = Command::new(required_env("CARGO")?);
    cargo
        .current_dir(here)
        .args(["metadata", "--format-version", "1"]);
    // Packages for other platforms aren't fetched by a build.
    cargo.args(["--filter-platform", &required_env("TARGET")?]);
    if lock_file(here).is_some() {
        cargo.arg("--locked");
    }
    let output = cargo.args(extra).output()?;
    if !output.status.success() {
        return Err(format!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The workspace's lock file: the nearest one above this crate.
fn lock_file(here: &Path) -> Option<PathBuf> {
    here.ancestors()
        .map(|folder| folder.join("Cargo.lock"))
        .find(|lock| lock.is_file())
}

fn required_env(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}
