#!/bin/sh
# petaflop: runs one agent in one container, and ends this machine when the container has ended or
# when nobody renews its lease. Shutting down ends the bill: the instance was bought so.
allowance=@ALLOWANCE@ grace=@GRACE@ longest=@LONGEST@
d="${PETAFLOP_FOLDER:-/var/lib/petaflop}"

# Seconds since boot; goes on while suspended, never steps.
boot() { read -r up _ </proc/uptime && echo "${up%%.*}"; }
over() {
  echo "petaflop: $*; this machine ends" >&2
  while :; do shutdown -h now; sleep 10; done
}

# The host timer, before anything else. It shuts down $grace seconds after the deadline: $allowance
# seconds from now, later what the agent writes at each renewal of its lease. What is no time, or
# farther than any lease reaches, is not believed.
trap '' HUP
mkdir -p "$d/lease" "$d/work"
chmod 755 "$d" && chmod 777 "$d/lease" "$d/work"
deadline=$(($(boot) + allowance))
(
  { echo -1000 >/proc/self/oom_score_adj; } 2>/dev/null
  while now=$(boot) && [ "$now" -le "$((deadline + grace))" ]; do
    new=
    { read -r new <"$d/lease/deadline"; } 2>/dev/null
    case "$new" in
      '' | 0* | *[!0-9]* | ?????????????*) ;;
      *) [ "$new" -le "$((now + longest))" ] && deadline=$new ;;
    esac
    sleep 5
  done
  over "nobody renewed the lease"
) </dev/null >/dev/null 2>&1 &

# User-data is run at the first boot alone: a machine that boots again has neither timer nor agent.
boots="${PETAFLOP_FOLDER:-/var/lib/cloud}/scripts/per-boot"
mkdir -p "$boots" && printf '#!/bin/sh\nshutdown -h now\n' >"$boots/petaflop" &&
  chmod 755 "$boots/petaflop"

# The image of ECS brings an agent of its own.
systemctl disable --now --no-block ecs 2>/dev/null
systemctl start --no-block docker 2>/dev/null
until curl -fsSL -m 300 -o "$d/petaflop-agent" '@URL@'; do sleep 5; done
[ "$(sha256sum <"$d/petaflop-agent" | cut -c1-64)" = @SHA256@ ] || over "the agent is not the one"
chmod 755 "$d/petaflop-agent"
until docker info >/dev/null 2>&1; do sleep 2; done
tries=0
until docker pull '@IMAGE@'; do
  tries=$((tries + 1))
  [ "$tries" -lt 5 ] || over "the image cannot be had"
  sleep 10
done

umask 077
cat >"$d/environment" <<'PETAFLOP_ENVIRONMENT'
@ENVIRONMENT@
PETAFLOP_ENVIRONMENT
start() {
  docker run -d --name petaflop --network host --log-driver local $1 \
    --env-file "$d/environment" -v "$d/petaflop-agent:@AGENT@:ro" -v "$d/lease:@LEASE@" \
    -v "$d/work:@WORK@" --entrypoint @AGENT@ '@IMAGE@' supervise
}
# Devices that docker cannot hand over: the agent starts without them, and says what is missing.
start '@GPUS@' || { docker rm -f petaflop; start ''; } || over "the container cannot start"
rm -f "$d/environment"
docker wait petaflop
over "its work is done"
