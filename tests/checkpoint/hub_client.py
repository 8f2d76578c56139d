"""Opens checkpoints on request, in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported.

One JSON object a line on stdin, the arguments of `open_checkpoint`, or a model and "export": true; one JSON object a
line on stdout, the outcome.
"""

import hashlib
import json
import sys
import time

from doge_export.checkpoint import open_checkpoint
from doge_export.errors import DogeExportError
from doge_export.runtime.hub_folder import local_folder

time.sleep = lambda seconds: None  # huggingface_hub waits up to eight seconds before it tries again

for line in sys.stdin:
    arguments = json.loads(line)
    try:
        if arguments.pop("export", False):
            sys.stdout.write(json.dumps({"folder": str(local_folder(arguments["model"]))}) + "\n")
            sys.stdout.flush()
            continue
        checkpoint = open_checkpoint(**arguments)
    except DogeExportError as error:
        outcome = {"error": str(error)}
    else:
        digest = hashlib.sha256()
        for name in sorted(checkpoint.tensors):
            digest.update(checkpoint.tensors[name].numpy().tobytes())
        outcome = {
            "revision": checkpoint.source.revision,
            "folder": str(checkpoint.source.folder),
            "files": sorted(
                str(file.relative_to(checkpoint.source.folder)) for file in checkpoint.source.folder.rglob("*")
            ),
            "notes": checkpoint.notes,
            "weights": digest.hexdigest(),
        }
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()
