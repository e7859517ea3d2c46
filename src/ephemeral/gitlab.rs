//! A GitLab runner's custom executor: its four stages, each a process of its own (`docs.gitlab.com/runner/executors/custom`). What a job can set, variables
//! and the name of an image, is not trusted.

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::model::Name;

/// What the runner says of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// `JOB_RESPONSE_FILE`'s content: the runner's own words, which a job cannot change.
    pub response: Option<String>,
    /// `CUSTOM_ENV_CI_JOB_ID`, for runners without that file.
    pub id: Option<String>,
    /// `CUSTOM_ENV_CI_JOB_IMAGE`, as the job's author wrote it.
    pub image: Option<String>,
}

#[derive(Deserialize)]
struct Response {
    id: u64,
}

impl Job {
    /// The VM of this job: `gitlab-4711`.
    pub fn vm(&self) -> Result<Name> {
        let id = match &self.response {
            Some(text) => serde_json::from_str::<Response>(text)
                .map_err(|source| Error::failed("the runner's JOB_RESPONSE_FILE cannot be read").because(source))?
                .id
                .to_string(),
            None => self.id.clone().ok_or_else(|| {
                Error::usage("neither JOB_RESPONSE_FILE nor CUSTOM_ENV_CI_JOB_ID is set")
                    .hint("this is for a GitLab runner to call; see docs/ci.md")
            })?,
        };
        if id.is_empty() || id.len() > 20 || !id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::refused(format!("{id:?} is not the id of a job")));
        }
        format!("gitlab-{id}").parse()
    }

    /// The template for it: the runner's own, or one of `allowed` that the job names as its image.
    pub fn template(&self, default: &Name, allowed: &[Name]) -> Result<Name> {
        let Some(image) = self.image.as_deref().filter(|image| !image.is_empty()) else { return Ok(default.clone()) };
        if image == default.as_str() {
            return Ok(default.clone());
        }
        allowed.iter().find(|name| name.as_str() == image).cloned().ok_or_else(|| {
            let names: Vec<&str> = [default].into_iter().chain(allowed).map(Name::as_str).collect();
            Error::refused(format!("the job asks for the image {image:?}, and this runner has: {}", names.join(", ")))
                .hint("name one of them as `image:` in the job, or none")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_cannot_name_another_jobs_vm() {
        let job = Job { response: Some(r#"{"id": 4711, "token": "x"}"#.into()), id: Some("1".into()), image: None };
        assert_eq!(job.vm().expect("a name").as_str(), "gitlab-4711");
        let without = |id: &str| Job { id: Some(id.into()), ..Job::default() }.vm();
        assert_eq!(without("12").expect("a name").as_str(), "gitlab-12");
        for bad in ["", "1 2", "../x", "-1", "1;rm", "123456789012345678901"] {
            assert!(without(bad).is_err(), "{bad:?} was taken");
        }
        assert!(Job::default().vm().is_err());
    }

    #[test]
    fn an_image_is_one_of_those_that_are_allowed() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let (default, allowed) = (name("deb12"), [name("deb13")]);
        let template = |image: Option<&str>| {
            Job { image: image.map(str::to_owned), ..Job::default() }.template(&default, &allowed)
        };
        assert_eq!(template(None).expect("the default"), default);
        assert_eq!(template(Some("deb12")).expect("the default"), default);
        assert_eq!(template(Some("deb13")).expect("another"), allowed[0]);
        assert!(template(Some("web")).is_err());
        assert!(template(Some("../deb13")).is_err());
    }
}
