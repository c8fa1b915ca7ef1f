//! `certificate`: what others need to know of an agent's key.

use permission::Leaf;

use crate::cli::CertificateArgs;
use crate::failure::Failure;
use crate::output::print;
use crate::rotate::RotateError;
use crate::run::load;
use crate::state::StateDir;

/// Runs the command.
pub fn run(args: &CertificateArgs) -> Result<(), Failure> {
    let (leaf, certificate_pem) = chosen(&StateDir::new(&args.state.dir), args.next)?;
    Ok(print(&if args.spki {
        format!("{}\n", leaf.spki.to_hex())
    } else if args.request {
        request(&leaf, &certificate_pem)
    } else {
        certificate_pem
    })?)
}

fn chosen(dir: &StateDir, next: bool) -> Result<(Leaf, String), Failure> {
    let state = load(dir)?;
    if !next {
        return Ok((state.leaf, state.certificate_pem));
    }
    let next = dir.next().map_err(RotateError::from)?;
    Ok(next
        .and_then(|next| next.certificate)
        .ok_or(RotateError::NoneBegun)?)
}

/// A text for a principal, which is a file for `grant --spki` too: PEM may have anything before its
/// first line (RFC 7468, section 2).
pub(crate) fn request(leaf: &Leaf, certificate_pem: &str) -> String {
    // An identity may hold characters that reorder a terminal's line.
    let identity = leaf.identity.as_str().escape_debug();
    format!(
        "An agent asks for permissions. Compare the SPKI with what the agent's machine shows, save\n\
         this as FILE, and choose what it may reach:\n  \
         agent-gateway-registry grant --key KEY --identity NAME --spki FILE --destination HOST:PORT\n\n\
         identity: {identity}\n\
         spki: {}\n\n\
         {certificate_pem}",
        leaf.spki.to_hex()
    )
}
