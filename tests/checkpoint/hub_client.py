"""Opens checkpoints on request, in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported.

One JSON object a line on stdin, the arguments of `open_checkpoint`; one JSON object a line on stdout, the outcome.
"""

import hashlib
import json
import sys
import time

from doge_export.checkpoint import open_checkpoint
from doge_export.errors import DogeExportError

time.sleep = lambda seconds: None  # huggingface_hub waits up to eight seconds before it tries again

for line in sys.stdin:
    try:
        checkpoint = open_checkpoint(**json.loads(line))
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
            "weights": digest.hexdigest(),
        }
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()
