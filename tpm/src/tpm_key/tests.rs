//! A TPM that keeps silent, with less patience than callers have outside.

use std::thread;

use testbed::Swtpm;

use super::*;
use crate::{Handle, Pins};

const IMPATIENT: Timeouts = Timeouts {
    open: TpmKey::OPEN_TIMEOUT,
    sign: Duration::from_millis(300),
};

fn location(swtpm: &Swtpm) -> Location {
    Location {
        tcti: swtpm.tcti().parse().unwrap(),
        handle: Handle::DEFAULT,
    }
}

/// Signs as soon as the TPM has caught up; a machine under load may need several attempts.
fn sign_eventually(key: &TpmKey) -> DerSignature {
    for _ in 0..100 {
        match key.sign(b"after") {
            Ok(signature) => return signature,
            Err(SignError::TimedOut { .. } | SignError::Busy { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the TPM doesn't come round");
}

#[test]
fn paused_tpm_times_out_and_signs_again_when_it_goes_on() {
    let mut swtpm = Swtpm::start().unwrap();
    let key = TpmKey::create_within(&location(&swtpm), &Pins::default(), IMPATIENT).unwrap();
    swtpm.process().pause().unwrap();
    for _ in 0..2 {
        let error = key.sign(b"now").unwrap_err();
        assert!(
            matches!(&error, SignError::TimedOut { limit, .. } if *limit == IMPATIENT.sign),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            format!(
                "the TPM key {} gave no signature within 300ms",
                location(&swtpm)
            )
        );
    }
    swtpm.process().resume().unwrap();
    sign_eventually(&key);
}

#[test]
fn killed_while_it_hangs_the_tpm_signs_again_once_restarted() {
    let mut swtpm = Swtpm::start().unwrap();
    let key = TpmKey::create_within(&location(&swtpm), &Pins::default(), IMPATIENT).unwrap();
    swtpm.process().pause().unwrap();
    assert!(matches!(key.sign(b"now"), Err(SignError::TimedOut { .. })));
    swtpm.process().kill();
    swtpm.start_again().unwrap();
    sign_eventually(&key);
}

#[test]
fn opening_on_a_paused_tpm_times_out() {
    let mut swtpm = Swtpm::start().unwrap();
    swtpm.process().pause().unwrap();
    let limit = Duration::from_millis(300);
    let error = TpmKey::create_within(
        &location(&swtpm),
        &Pins::default(),
        Timeouts {
            open: limit,
            ..IMPATIENT
        },
    )
    .unwrap_err();
    assert!(matches!(&error, TpmError::TimedOut { limit: waited, .. } if *waited == limit));
    assert_eq!(
        error.to_string(),
        format!("the TPM {} gave no answer within 300ms", swtpm.tcti())
    );
}

#[test]
fn more_signatures_than_the_queue_holds_are_refused_at_once() {
    let mut swtpm = Swtpm::start().unwrap();
    let key = TpmKey::create_within(&location(&swtpm), &Pins::default(), IMPATIENT).unwrap();
    swtpm.process().pause().unwrap();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let callers: Vec<_> = (0..QUEUE + 20)
            .map(|_| scope.spawn(|| key.sign(b"now").unwrap_err()))
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect()
    });
    let busy = outcomes
        .iter()
        .filter(|error| matches!(error, SignError::Busy { .. }))
        .count();
    let late = outcomes
        .iter()
        .filter(|error| matches!(error, SignError::TimedOut { .. }))
        .count();
    assert_eq!(busy + late, outcomes.len(), "{outcomes:?}");
    assert!(late >= QUEUE && busy > 0, "busy {busy}, timed out {late}");
    swtpm.process().resume().unwrap();
    sign_eventually(&key);
}
