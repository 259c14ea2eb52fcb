"""The validator of RO-Crates without a network: `python validate_crate.py CONTEXT ARGUMENTS...`.

It runs in an environment of its own. CONTEXT is the JSON-LD context that the rocrate library carries, of version 1.3;
terms of Bioschemas are mapped as in version 1.1, which the crate is of.
"""

import io
import sys
import urllib.request
from email.message import Message
from pathlib import Path
from urllib.response import addinfourl

import requests
import requests_cache
from rocrate_validator.cli.main import cli

PLACE = "https://w3id.org/ro/crate/"
CONTEXT = Path(sys.argv.pop(1)).read_bytes().replace(b"https://bioschemas.org/terms/", b"https://bioschemas.org/")
KIND = {"Content-Type": "application/ld+json"}


def opened(self, request, *rest, **named):
    url = request if isinstance(request, str) else request.full_url
    if not url.startswith(PLACE):
        return _open(self, request, *rest, **named)
    headers = Message()
    headers.add_header(*next(iter(KIND.items())))
    return addinfourl(io.BytesIO(CONTEXT), headers, url, 200)


def sent(self, request, **named):
    if not request.url.startswith(PLACE):
        return _send(self, request, **named)
    response = requests.Response()
    response.status_code, response._content, response.url, response.request = 200, CONTEXT, request.url, request
    response.headers.update(KIND)
    return response


_open, _send = urllib.request.OpenerDirector.open, requests.Session.send
urllib.request.OpenerDirector.open = opened
requests.Session.send = requests_cache.CachedSession.send = sent
cli()
