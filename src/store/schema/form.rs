//! Fields of a step that hold a live type, written and read by the saved form of that type:
//! `#[serde(with = "form")]`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A live type that a step can hold.
pub(crate) trait Saved: Sized {
    /// How it is written.
    type Form: Serialize + DeserializeOwned;

    /// Its saved form.
    fn to_form(&self) -> Self::Form;

    /// What a saved form stands for.
    fn from_form(form: Self::Form) -> Self;
}

impl<T: Saved> Saved for Vec<T> {
    type Form = Vec<T::Form>;

    fn to_form(&self) -> Self::Form {
        self.iter().map(T::to_form).collect()
    }

    fn from_form(form: Self::Form) -> Self {
        form.into_iter().map(T::from_form).collect()
    }
}

impl<T: Saved> Saved for Option<T> {
    type Form = Option<T::Form>;

    fn to_form(&self) -> Self::Form {
        self.as_ref().map(T::to_form)
    }

    fn from_form(form: Self::Form) -> Self {
        form.map(T::from_form)
    }
}

/// Writes `value` by its form.
pub(crate) fn serialize<T: Saved, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.to_form().serialize(serializer)
}

/// Reads a value by its form.
pub(crate) fn deserialize<'de, T: Saved, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    T::Form::deserialize(deserializer).map(T::from_form)
}
