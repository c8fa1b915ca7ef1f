//! `certificate`: what others need to know of an agent's key.

use permission::Leaf;

use crate::cli::CertificateArgs;
use crate::failure::Failure;
use crate::run::load;
use crate::state::StateDir;

/// Runs the command.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub fn run(args: &CertificateArgs) -> Result<(), Failure> {
    let state = load(&StateDir::new(&args.state.dir))?;
    if args.spki {
        println!("{}", state.leaf.spki.to_hex());
    } else if args.request {
        print!("{}", request(&state.leaf, &state.certificate_pem));
    } else {
        print!("{}", state.certificate_pem);
    }
    Ok(())
}

/// A text for a principal, which is a file for `grant --spki` too: PEM may have anything before its
/// first line (RFC 7468, section 2).
fn request(leaf: &Leaf, certificate_pem: &str) -> String {
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
