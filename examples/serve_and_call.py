"""Serve a catalogue, and call it with the OpenAI client and with plain HTTP.

    pip install 'moonshelf[serve]' openai
    python examples/serve_and_call.py

Writes `served/` into the current folder. In production the service runs by itself: `moonshelf serve FOLDER`.
"""

import base64
import json
import socket
import subprocess
import sys
import time
from urllib.request import Request, urlopen

from openai import OpenAI

from moonshelf.catalogue.search import Catalogue
from moonshelf.sample import shop

products = shop(24).products
Catalogue.create("served").embed(products, reason="on")

with socket.socket() as free:  # any free port of this machine
    free.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{free.getsockname()[1]}"
command = [sys.executable, "-m", "moonshelf.cli", "serve", "served", "--port", address.rpartition(":")[2]]
service = subprocess.Popen([*command, "--creative-model", "off"], stderr=subprocess.DEVNULL)
try:
    for _ in range(600):  # the port opens at once; /ready says when model and index are loaded
        try:
            urlopen(f"{address}/ready", timeout=5)
            break
        except OSError:
            assert service.poll() is None, "the service ended: start it by hand to see why"
            time.sleep(0.2)

    # OpenAI's client as it is. An input is a text, or an object with text, image, or both.
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    photo = "data:image/webp;base64," + base64.b64encode(products[0].images[0].data).decode()
    inputs = ["blue handbag", {"text": products[0].title, "image": photo}]
    reply = client.embeddings.create(model="starter", input=inputs, extra_body={"reason": "on"})
    for entry in reply.data:
        print(len(entry.embedding), "numbers;", entry.rationale, entry.weights)

    # Search has no form of OpenAI's; it is one POST.
    body = json.dumps({"text": "blue handbag", "filters": {"price_max": 100}, "limit": 3}).encode()
    request = Request(f"{address}/v1/search", body, {"content-type": "application/json"})
    for hit in json.load(urlopen(request, timeout=60))["hits"]:
        print(f"{hit['score']:.2f}", hit["product"]["title"])
finally:
    service.terminate()
    service.wait()
