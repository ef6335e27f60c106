# %% [markdown]
# # Serving a model: from a file to answers over HTTP
#
# A model that was fitted is saved as data, loaded by another process, and asked for draws and for
# scores over the network. What it is, how it was trained and what its numbers mean travel with it.
# At the end it becomes a program of torch alone, which runs where probgen is not installed. About
# twenty seconds on one core; nothing but Python's own web server.

# %%
import argparse
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import probgen as pg

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("serving_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

# %% [markdown]
# ## A model worth serving
#
# Four lengths and masses of penguins, and a spline flow of them. Held-out rows say how good it is.

# %%
sizes = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
frame = pg.datasets.load_penguins()[sizes].dropna()
rows = torch.tensor(frame.to_numpy(), dtype=torch.float32)
rows = rows[torch.randperm(len(rows))]
train = rows[:240]
held_out = rows[240:]
flow = pg.Standardized.fitted(pg.NSF(4, layers=2, bins=6, hidden=(32,)), train)
pg.fit(
    flow,
    train,
    steps=300,
    batch_size=64,
    optimizer=pg.train.adam(5e-3),
    validation=held_out[:50],
    patience=20,
    progress=False,
    verdict=False,
    seed=0,
)
test = pg.log_likelihood(flow, held_out[50:])
print("held-out penguins:", test)

# %% [markdown]
# ## One file
#
# `pg.save` writes weights, the calls that build the model, and what trained it: data, no code.

# %%
file = OUTPUT / "penguins.safetensors"
pg.save(flow, file)
loaded = pg.load(file)
print(loaded)
for record in pg.train.training_records(loaded):
    print(record)

# %% [markdown]
# ## A server
#
# The server is a process of its own: it knows the file, and not how it came about. It answers with
# the kind of each number, passes seeds on, bounds what one request may cost, and tells a client what
# was wrong with a request in the sentence that the library has for it. Threads take turns by
# themselves.

# %%
SERVER = """
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import probgen as pg

MOST = 10_000  # rows of a request
gen = pg.load(sys.argv[1])


def about(asked):
    records = pg.train.training_records(gen)
    return {"model": repr(gen), "training": [repr(record) for record in records]}


def draws(asked):
    n = asked.get("n", 1)
    if not isinstance(n, int) or n > MOST:
        raise ValueError(f"expected at most {MOST} draws, got {n}; ask several times")
    return {"rows": pg.sample(gen, n, seed=asked.get("seed")).tolist()}


def scores(asked):
    score = pg.log_likelihood(gen, asked.get("rows", [])[:MOST], progress=False)
    return {"scores": score.value.tolist(), "kind": score.kind, "unit": score.unit}


ANSWERS = {"/about": about, "/draws": draws, "/scores": scores}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = 200, ANSWERS[self.path](json.loads(text or "{}"))
        except KeyError:
            status, answer = 404, {"error": f"expected one of {list(ANSWERS)}, got {self.path}"}
        except (ValueError, TypeError) as error:
            status, answer = 400, {"error": str(error)}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # port 0: one that is free
print(server.server_port, flush=True)
server.serve_forever()
"""
script = OUTPUT / "serve.py"
script.write_text(SERVER)
server = subprocess.Popen(
    [sys.executable, str(script), str(file)], stdout=subprocess.PIPE, text=True
)
port = int(server.stdout.readline())


# %% [markdown]
# ## A client
#
# It needs JSON and nothing else. The same seed gives the same rows, there as here.


# %%
def ask(what, **asked):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{what}", json.dumps(asked).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


try:
    print(ask("about")["training"][0])
    served = torch.tensor(ask("draws", n=300, seed=1)["rows"])
    answer = ask("scores", rows=held_out[50:].tolist())
    stretched = held_out[50:] * torch.tensor([1.0, 1.3, 1.0, 1.0])  # bills too deep
    odd = ask("scores", rows=stretched.tolist())
    refused = ask("scores", rows=[[39.1, 18.7, 181.0]])
    too_many = ask("draws", n=10**9)
finally:
    server.terminate()
    server.wait()

same = torch.allclose(served, pg.sample(flow, 300, seed=1))
print("served draws are those of the model:", same)
got = torch.tensor(answer["scores"])
print(f"served scores ({answer['kind']}, {answer['unit']}):", torch.allclose(got, test.value))
print("three numbers for four columns:", refused["error"])
print("a request too large:", too_many["error"])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
left.scatter(*rows[:, [0, 3]].T, s=8, label="penguins")
left.scatter(*served[:, [0, 3]].T, s=8, label="served draws")
left.set(xlabel="bill length in mm", ylabel="body mass in g")
left.legend()
bins = torch.linspace(-40, -8, 40).tolist()
for name, values in {"penguins": answer, "bills 30% deeper": odd}.items():
    clipped = torch.tensor(values["scores"]).clamp(min=bins[0])
    right.hist(clipped.tolist(), bins, alpha=0.6, label=name)
right.set(xlabel="served log-likelihood of a row in nats", ylabel="rows")
right.legend()
figure.savefig(OUTPUT / "serving.png", dpi=110, bbox_inches="tight")

# %% [markdown]
# ## Without probgen
#
# Where even the library is too much, density and sampler become programs of torch alone: no Pyro, no
# code of ours, any number of rows. The kind of the number is kept beside the program, and both were
# compared before the program was given. The process below cannot import probgen at all.

# %%
density = pg.export_density(flow, train[:8])
print(density)
density.save(OUTPUT / "density.pt2")
WITHOUT = """
import json, sys
sys.modules["probgen"] = sys.modules["pyro"] = None
import torch
run = torch.export.load(sys.argv[1]).module()
rows = torch.tensor(json.load(sys.stdin))
print(json.dumps(run(rows).tolist()))
"""
done = subprocess.run(
    [sys.executable, "-c", WITHOUT, str(OUTPUT / "density.pt2")],
    input=json.dumps(held_out[50:].tolist()),
    capture_output=True,
    text=True,
    check=True,
)
got = torch.tensor(json.loads(done.stdout))
print("scores without probgen are the same:", torch.allclose(got, test.value, atol=1e-3))

# %% [markdown]
# ## For others
#
# A folder with the model and a card, as model hubs show it: the family and its equation, scores with
# their errors and kinds, how it was trained, how to load it. `pg.hub.push_to_hub` uploads the same.

# %%
folder = pg.hub.save_to_folder(
    flow,
    OUTPUT / "penguins",
    scores={"52 held-out penguins": test},
    name="penguins",
    description="Sizes of three species near Palmer Station. Not for penguins elsewhere.",
)
print((folder / "README.md").read_text().split("## Scores")[1].split("## Use")[0].strip())
print("the folder is the model:", repr(pg.hub.from_hub(folder)) == repr(flow))
