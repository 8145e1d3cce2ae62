# SPDX-License-Identifier: Apache-2.0
"""A model hub that speaks the protocols of Hugging Face, ModelScope and S3, from the standard library alone.

    python3 -m server --root DIR [--port 80]        DIR as repository.py writes it; it is read anew for every request

| module | addresses |
|---|---|
| huggingface.py | /api/models/{repo}[/revision/{rev}], .../refs, .../tree/{rev}[/path] in pages; /{repo}/resolve/{rev}/{path} with ranges |
| modelscope.py | /api/v1/models/{repo}, .../revisions, .../repo/files?Revision=, .../repo?Revision=&FilePath= |
| s3.py | /{bucket}/models/{repo}/{commit}/{path} with ranges, for `weights` signed with AWS SigV4, for `public` by anybody |
| handler.py | /files/{repo}/{commit}/{path} with ranges: plain files, as a web server has them |

Large files of both hubs are redirected to a signed address under /cdn/ that expires, as the real ones do. The real one is on another host: with
`--cdn http://cdn.hub.test`, another name for this server, it is here too, and a client that must not send its token there is found out ("leaks").

What goes wrong in the world is set at run time. `POST /_testbed/faults` takes {pattern: kind} or {pattern: {"kind": ..., ...}}, the pattern a shell
pattern for the path of the address (ModelScope's FilePath counts as its end), or for a client's address with the path behind it: `10.0.0.1/*`. `GET` shows
what is set, `DELETE` clears it and lets go of every request that hangs.

    corrupt   the last byte is wrong; the size is right            429, 500, 503   refused; "retry_after" (seconds, default 1) is announced
    truncate  half of the bytes, then the connection is closed     missing         404, as if the repository had no such entry
    cut       as truncate, after so many "bytes"                   expired         403 below /cdn/, as of a signature that is too old
    hang      half of the bytes, then silence                      silent          no answer at all
    wrong_size  so many "bytes" more than the tree says, or less   revised         history was written anew: another commit answers to the name
    rate      so many "bytes" a second, shared by all it strikes

What strikes content does so where it flows, not at redirects: `*model-00002*` is enough. A rate comes on top of another fault. "count" ends a fault after
so many times, "seconds" (default 600) ends a silence. `GET /_testbed/stats` counts requests and bytes of content by path, and bytes by client, and
requests that came before an announced wait was over ("hasty"); `DELETE` starts anew; `/_testbed/health`.
"""

from .handler import Handler, HubServer

__all__ = ["Handler", "HubServer"]
