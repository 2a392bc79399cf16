//! How the agent gets into a pod. There is no init container and no user-data: the start command
//! is replaced by a few lines of shell, which take the agent from the image or fetch it, look at
//! its hash before it runs, and end the pod when it has ended. Pure.
//!
//! A container that just exits may be started again, or leaves a stopped pod whose disk is billed
//! for ever. So these lines never just exit: they ask RunPod to end the pod, with the key that
//! RunPod itself puts into it and that is good for that pod alone, until it does.

pub use crate::machine::AgentDownload;
use crate::machine::{AGENT_FOLDER, AgentSource, WORK_FOLDER};

/// The start command, as RunPod takes it: JSON in a text.
pub(super) fn start(agent: &AgentDownload, api: &str) -> String {
    let command = [script(agent, api)];
    serde_json::json!({ "entrypoint": ["/bin/sh", "-c"], "cmd": command }).to_string()
}

/// Images, by how their names begin, that are known to have no `/bin/sh`.
const WITHOUT_A_SHELL: [&str; 4] =
    ["gcr.io/distroless/", "cgr.dev/chainguard/static", "registry.k8s.io/pause", "scratch"];

/// Whether a pod of an image can be entered, as far as names say: only an image's layers would say it
/// all, and nobody fetches those to ask for a price. One that has no shell and another name stops
/// within seconds, and is ended.
///
/// # Errors
/// Why not, and what to do, in words.
pub(super) fn enters(image: &str, agent: &AgentSource) -> Result<(), String> {
    let AgentSource::Image(carrier) = agent;
    if image == carrier || WITHOUT_A_SHELL.iter().any(|start| image.starts_with(start)) {
        return Err(format!(
            "image {image} has no /bin/sh, and RunPod no other way in: take one with a shell, or \
             another provider"
        ));
    }
    Ok(())
}

/// The lines of shell. POSIX, with whatever of curl and wget the image has; an image that brings the
/// agent needs neither. Wget is told no patience: not every one that images have knows that option.
pub(super) fn script(agent: &AgentDownload, api: &str) -> String {
    let AgentDownload { url, sha256 } = agent;
    let sha256 = sha256.to_ascii_lowercase();
    format!(
        r#"d="${{PETAFLOP_FOLDER:-{AGENT_FOLDER}}}"
mkdir -p "$d" "${{PETAFLOP_WORK:-{WORK_FOLDER}}}" || {{ d=/tmp/petaflop; mkdir -p "$d"; }}
f="$d/petaflop-agent"
has() {{ command -v "$1" >/dev/null 2>&1; }}
sure() {{ [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -c1-64)" = {sha256} ]; }}
fetch() {{
  if has curl; then curl -fsSL --retry 5 -m 300 -o "$f.new" '{url}'
  else wget -q -O "$f.new" '{url}'; fi
  sure "$f.new" && chmod 755 "$f.new" && mv "$f.new" "$f"
}}
over() {{
  e="${{RUNPOD_API_BASE_URL:-{api}}}"
  u="$e/v2/pods/$RUNPOD_POD_ID/action"
  b='{{"action":"terminate"}}'
  while :; do
    if has curl; then
      printf 'header = "Authorization: Bearer %s"\n' "$RUNPOD_API_KEY" |
        curl -fsS -m 30 -K - -H 'Content-Type: application/json' -d "$b" "$u" && exit "$1"
    else
      # It trusts whom the image trusts: where that is nobody, it says so at once.
      sure "$f" && "$f" end-pod "$e" && exit "$1"
      wget -q -O - --header "Authorization: Bearer $RUNPOD_API_KEY" \
        --header 'Content-Type: application/json' --post-data "$b" "$u" && exit "$1"
    fi
    sleep 10
  done
}}
sure /petaflop-agent && f=/petaflop-agent
sure "$f" || fetch || {{ echo "petaflop: the agent cannot be had, or is not the one" >&2; over 70; }}
"$f" supervise &
a=$!
trap 'kill -TERM $a' TERM INT
wait $a; c=$?
while kill -0 $a 2>/dev/null; do wait $a; c=$?; done
over $c
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> AgentDownload {
        AgentDownload { url: "https://example.org/agent".into(), sha256: "aB".repeat(32) }
    }

    #[test]
    fn the_start_command_is_json_in_a_text_and_holds_the_pinned_hash() {
        let text = start(&agent(), "https://api.runpod.io");
        let command: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(command["entrypoint"], serde_json::json!(["/bin/sh", "-c"]));
        let script = command["cmd"][0].as_str().expect("a script");
        assert!(script.contains(&"ab".repeat(32)));
        assert!(script.contains("'https://example.org/agent'"));
    }

    #[test]
    fn what_could_break_out_of_the_script_is_refused() {
        assert_eq!(agent().check(), Ok(()));
        for url in ["https://a/';rm -rf /'", "ftp://a/b", "https://a/b c", "https://a/$(x)", ""] {
            let agent = AgentDownload { url: url.into(), ..agent() };
            assert!(agent.check().is_err(), "{url}");
        }
        for sha256 in ["", "ab", &"g".repeat(64)] {
            let agent = AgentDownload { sha256: sha256.into(), ..agent() };
            assert!(agent.check().is_err(), "{sha256}");
        }
    }
}
