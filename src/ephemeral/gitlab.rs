//! A GitLab runner's custom executor: its four stages, each a process of its own
//! (`docs.gitlab.com/runner/executors/custom`). What a job can set, variables and the name of an
//! image, is not trusted.

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::model::Name;

/// What the runner says of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Job {
    /// `JOB_RESPONSE_FILE`'s content: the runner's own words, which a job cannot change.
    pub response: Option<String>,
    /// `CUSTOM_ENV_CI_JOB_ID`, for runners without that file.
    pub id: Option<String>,
    /// `CUSTOM_ENV_CI_SERVER_URL`, or the runner's own `CI_SERVER_URL`.
    pub server: Option<String>,
    /// `CUSTOM_ENV_CI_JOB_IMAGE`, as the job's author wrote it.
    pub image: Option<String>,
}

#[derive(Deserialize)]
struct Response {
    id: u64,
    #[serde(default)]
    git_info: GitInfo,
}

#[derive(Default, Deserialize)]
struct GitInfo {
    #[serde(default)]
    repo_url: String,
}

impl Job {
    /// The VM of this job: `gitlab-4711-1a2b3c4d`. Instances of GitLab count their jobs each for
    /// itself, so the name also holds a hash of the instance: of where the repository lies, which
    /// the runner says. Only where it does not, of the URL of the server: that is a variable, which
    /// a job can set.
    pub(crate) fn vm(&self) -> Result<Name> {
        let (id, repository) = self.numbered()?;
        let server = || self.server.as_deref().map(|url| url.trim_end_matches('/'));
        match repository.as_deref().map(origin).or_else(server) {
            None => format!("gitlab-{id}").parse(),
            Some(instance) => format!("gitlab-{id}-{:08x}", fnv(instance.as_bytes())).parse(),
        }
    }

    /// The name that the VM of this job had before names told instances apart. A job that was
    /// running then still has it.
    pub(crate) fn earlier_vm(&self) -> Result<Name> {
        format!("gitlab-{}", self.numbered()?.0).parse()
    }

    /// The id, and the URL of the repository where the runner says it.
    fn numbered(&self) -> Result<(String, Option<String>)> {
        let (id, repository) = match &self.response {
            Some(text) => {
                let response = serde_json::from_str::<Response>(text).map_err(|source| {
                    Error::failed("the runner's JOB_RESPONSE_FILE cannot be read").because(source)
                })?;
                let repository = Some(response.git_info.repo_url).filter(|url| !url.is_empty());
                (response.id.to_string(), repository)
            }
            None => {
                let id = self.id.clone().ok_or_else(|| {
                    Error::usage("neither JOB_RESPONSE_FILE nor CUSTOM_ENV_CI_JOB_ID is set")
                        .hint("this is for a GitLab runner to call; see docs/ci.md")
                })?;
                (id, None)
            }
        };
        if id.is_empty() || id.len() > 20 || !id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::refused(format!("{id:?} is not the id of a job")));
        }
        Ok((id, repository))
    }

    /// The template for it: the runner's own, or one of `allowed` that the job names as its image.
    pub(crate) fn template(&self, default: &Name, allowed: &[Name]) -> Result<Name> {
        let Some(image) = self.image.as_deref().filter(|image| !image.is_empty()) else {
            return Ok(default.clone());
        };
        if image == default.as_str() {
            return Ok(default.clone());
        }
        allowed.iter().find(|name| name.as_str() == image).cloned().ok_or_else(|| {
            let names: Vec<&str> = [default].into_iter().chain(allowed).map(Name::as_str).collect();
            Error::refused(format!(
                "the job asks for the image {image:?}, and this runner has: {}",
                names.join(", ")
            ))
            .hint("name one of them as `image:` in the job, or none")
        })
    }
}

/// Host and port of a URL: neither the token in it, which is another for each job, nor the path,
/// which is the project's.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    let authority = &url[start..end];
    authority.rfind('@').map_or(authority, |at| &authority[at + 1..])
}

/// FNV-1a, 32 bits. It keeps instances apart and is no secret.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_cannot_name_another_jobs_vm() {
        let response = Some(r#"{"id": 4711, "token": "x"}"#.into());
        let job = Job { response, id: Some("1".into()), ..Job::default() };
        assert_eq!(job.vm().expect("a name").as_str(), "gitlab-4711");
        let without = |id: &str| Job { id: Some(id.into()), ..Job::default() }.vm();
        assert_eq!(without("12").expect("a name").as_str(), "gitlab-12");
        for bad in ["", "1 2", "../x", "-1", "1;rm", "123456789012345678901"] {
            assert!(without(bad).is_err(), "{bad:?} was taken");
        }
        assert!(Job::default().vm().is_err());
    }

    #[test]
    fn jobs_of_two_instances_with_one_id_have_two_vms() {
        let on = |server: &str| Job {
            id: Some("5".into()),
            server: Some(server.into()),
            ..Job::default()
        };
        let name = |job: &Job| job.vm().expect("a name").to_string();
        let (one, two) = (name(&on("https://one.example")), name(&on("https://two.example")));
        assert_ne!(one, two);
        assert!(one.starts_with("gitlab-5-") && one.len() == "gitlab-5-".len() + 8, "{one}");
        assert_eq!(one, name(&on("https://one.example/")));
        // Each stage and each try finds the same VM, whatever the token in the URL is.
        let response = |id: u64, host: &str, token: &str| {
            let url = format!("https://gitlab-ci-token:{token}@{host}/group/project.git");
            let text = serde_json::json!({"id": id, "git_info": {"repo_url": url}}).to_string();
            Job { response: Some(text), ..on("https://forged.example") }
        };
        assert_eq!(name(&response(5, "one.example", "a")), name(&response(5, "one.example", "b")));
        // A job that names the other's URL as a variable of its own does not get the other's VM,
        // whatever it calls its server.
        let forged =
            Job { server: Some("https://two.example".into()), ..response(5, "one.example", "a") };
        assert_eq!(name(&forged), name(&response(5, "one.example", "a")));
        assert_ne!(name(&response(5, "one.example", "a")), name(&response(5, "two.example", "a")));
        assert_eq!(
            response(5, "one.example", "a").earlier_vm().expect("a name").as_str(),
            "gitlab-5"
        );
        assert_eq!(origin("https://u:p@h:8443/x@y"), "h:8443");
        assert_eq!(origin("ssh.example"), "ssh.example");
        assert_eq!(origin(""), "");
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
