#!/usr/bin/env bash
# A federation of three sites with TLS and node keys on this machine. It creates certificates, registers node keys,
# completes a run, and shows that a node without a registered key is refused. Needs openssl, ssh-keygen, and floco with
# its flower extra on the PATH.
#     examples/flower-tls.sh [DIR]        two minutes; all files go to DIR (default: a new folder)
set -euo pipefail
for tool in openssl ssh-keygen flower-superlink floco; do
  command -v "$tool" > /dev/null && continue
  echo "error: $tool is not on the PATH; install it, or activate the environment of floco[flower]"
  exit 2
done
dir=$(realpath -m "${1:-$(mktemp -d)}")
mkdir -p "$dir"/{certs,keys,logs,flwr}
cd "$dir"
export FLWR_HOME="$dir/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port)

echo "-- certificates: the federation's own authority, and one for the SuperLink's address"
openssl req -x509 -newkey rsa:3072 -nodes -days 30 -subj "/CN=floco federation" \
  -keyout certs/ca.key -out certs/ca.crt 2>/dev/null
openssl req -newkey rsa:3072 -nodes -subj "/CN=localhost" -keyout certs/server.key -out certs/server.csr 2>/dev/null
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' > certs/san.txt
openssl x509 -req -in certs/server.csr -CA certs/ca.crt -CAkey certs/ca.key -CAcreateserial -days 30 \
  -extfile certs/san.txt -out certs/server.pem 2>/dev/null

echo "-- one key pair per site: the private key stays at the site, the public key goes to the server"
for site in east north south stranger; do ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "keys/$site"; done

echo "-- data and app"
python - <<'PYTHON'
from pathlib import Path
from floco.runs.toml import read
from floco.flower.scaffold import write
from floco.flower.demo import deal
source = deal(Path("."))
data = [f"data.source=npz:{source.resolve()}", "data.split=natural"]
budget = ["training.rounds=3", "training.fraction=1.0", "algorithm.assign_at=2", "run.evaluate_every=3"]
write(Path("app"), read(None, [*data, *budget, "flower.sites=3"]))
PYTHON

echo "-- the SuperLink, with TLS, for nodes with registered keys only"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true' EXIT
flower-superlink --ssl-ca-certfile certs/ca.crt --ssl-certfile certs/server.pem --ssl-keyfile certs/server.key \
  --enable-supernode-auth --database "$dir/state.db" --host 127.0.0.1 --port "$port" \
  --disable-runtime-dependency-installation > logs/superlink.log 2>&1 &
pids+=($!)
printf '[superlink]\ndefault = "local"\n[superlink.local]\naddress = "127.0.0.1:%s"\nroot-certificates = "%s"\n' \
  "$port" "$dir/certs/ca.crt" > flwr/config.toml
for _ in $(seq 60); do flwr supernode list local > logs/list.log 2>&1 && break; sleep 1; done
for site in east north south; do
  log="logs/register-$site.log"
  flwr supernode register "keys/$site.pub" local > "$log" 2>&1 || { cat "$log"; exit 1; }
done

start() { # site
  flower-supernode --root-certificates certs/ca.crt --superlink "127.0.0.1:$port" --port "$(free_port)" \
    --auth-supernode-private-key "keys/$1" --max-retries 3 \
    --node-config "client-id=\"$1\" data=\"$dir/data/${2:-$1}.npz\" state-dir=\"$dir/sites/$1\"" > "logs/$1.log" 2>&1 &
  pids+=($!)
}
echo "-- a node without a registered key"
start stranger north
stranger=${pids[-1]}
for _ in $(seq 60); do kill -0 "$stranger" 2>/dev/null || break; sleep 1; done
if kill -0 "$stranger" 2>/dev/null; then echo "FAILED: the stranger is still connected"; exit 1; fi
echo "refused:"; grep -iE "error|denied|authenticat|unauth|register" logs/stranger.log | tail -n 2

echo "-- the sites, and a run"
for site in east north south; do start "$site"; done
flwr run app local --stream --run-config "out=\"$dir/run\"" | \
  sed -u -E 's/^.*(INFO|ERROR)[^:]*: +//' | tee logs/run.log | grep -E "^(round|error|the run)"
grep -q "^the run is in" logs/run.log || { echo "FAILED: the run did not end well"; exit 1; }
floco export "$dir/sites/north" --client north -o "$dir/north.safetensors"
echo "done: $dir"
