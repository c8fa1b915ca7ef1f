//! The software key's file.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tpm::{SigningKey, SoftwareKey, SoftwareKeyError};

use crate::sign_and_verify;

fn folder() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("key.pem");
    (folder, path)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn created_key_is_a_private_pem_file_that_loads_as_the_same_key() {
    let (_folder, path) = folder();
    let created = SoftwareKey::create(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .starts_with("-----BEGIN PRIVATE KEY-----\n")
    );
    let loaded = SoftwareKey::load(&path).unwrap();
    assert_eq!(loaded.public_key(), created.public_key());
    for number in 0..100_u8 {
        sign_and_verify(&created, &[number]);
        sign_and_verify(&loaded, &[number]);
    }
}

#[test]
fn two_created_keys_differ() {
    let (_first_folder, first) = folder();
    let (_second_folder, second) = folder();
    let first = SoftwareKey::create(&first).unwrap();
    assert_ne!(
        SoftwareKey::create(&second).unwrap().public_key(),
        first.public_key()
    );
}

#[test]
fn existing_file_or_link_is_never_overwritten() {
    let (folder, path) = folder();
    fs::write(&path, "precious").unwrap();
    let link = folder.path().join("link.pem");
    symlink(folder.path().join("target"), &link).unwrap();
    for taken in [&path, &link] {
        let error = SoftwareKey::create(taken).unwrap_err();
        assert!(
            matches!(&error, SoftwareKeyError::Exists { path } if path == taken),
            "{error:?}"
        );
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert!(!folder.path().join("target").exists());
}

#[test]
fn file_that_others_can_get_at_is_refused() {
    let (_folder, path) = folder();
    SoftwareKey::create(&path).unwrap();
    for mode in [0o640, 0o604, 0o644, 0o620, 0o601, 0o777] {
        set_mode(&path, mode);
        let error = SoftwareKey::load(&path).unwrap_err();
        assert!(matches!(error, SoftwareKeyError::Exposed { mode: seen, .. } if seen == mode));
        assert_eq!(
            error.to_string(),
            format!(
                "{} has mode {mode:04o}; a private key must be its owner's alone (chmod 600)",
                path.display()
            )
        );
    }
    for mode in [0o600, 0o400] {
        set_mode(&path, mode);
        SoftwareKey::load(&path).unwrap();
    }
}

#[test]
fn file_without_a_key_is_refused_and_its_content_not_shown() {
    let (_folder, path) = folder();
    SoftwareKey::create(&path).unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    let half = &whole[..whole.len() / 2];
    for content in ["", "not a key", half, &whole.replace("PRIVATE", "PUBLIC")] {
        fs::write(&path, content).unwrap();
        let error = SoftwareKey::load(&path).unwrap_err();
        assert!(
            matches!(error, SoftwareKeyError::NotAKey { .. }),
            "{content}: {error:?}"
        );
        let text = format!(
            "{} holds no P-256 private key in PKCS#8 PEM",
            path.display()
        );
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn missing_file_and_missing_folder_are_named() {
    let (folder, path) = folder();
    let error = SoftwareKey::load(&path).unwrap_err();
    assert!(matches!(&error, SoftwareKeyError::Read { path: named, .. } if named == &path));
    let nowhere = folder.path().join("nowhere/key.pem");
    let error = SoftwareKey::create(&nowhere).unwrap_err();
    assert!(matches!(&error, SoftwareKeyError::Write { path: named, .. } if named == &nowhere));
}

#[test]
fn debug_shows_the_public_key_alone() {
    let (_folder, path) = folder();
    let key = SoftwareKey::create(&path).unwrap();
    let expected = format!("SoftwareKey {{ public: {:?}, .. }}", key.public_key());
    assert_eq!(format!("{key:?}"), expected);
}
