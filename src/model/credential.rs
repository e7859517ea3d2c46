//! Passwords and SSH keys that are put into guests.

use crate::error::{Error, Result};

/// Hashes a password as `crypt(5)`'s sha512crypt, which every distribution's PAM knows.
pub fn hash_password(word: &str) -> Result<String> {
    use sha_crypt::PasswordHasher;
    if word.is_empty() {
        return Err(Error::usage("an empty password lets everybody in")
            .hint("to disable login by password: locked"));
    }
    let hash = sha_crypt::ShaCrypt::SHA512
        .hash_password(word.as_bytes())
        .map_err(|error| Error::failed(format!("the password cannot be hashed: {error}")))?;
    Ok(hash.to_string())
}

/// The key in the text of a `.pub` file, which has to be one public key.
pub fn public_key(text: &str) -> Result<String> {
    let key = text.trim();
    if key.contains("PRIVATE KEY") {
        return Err(Error::usage(
            "that is a private key, which belongs in no guest; name the .pub file beside it",
        ));
    }
    if key.lines().count() != 1 || key.split_whitespace().count() < 2 {
        return Err(Error::usage("that is no public key (one line: type, key, comment)"));
    }
    Ok(key.to_owned())
}
