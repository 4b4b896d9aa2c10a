"""From catalogs and audio to token shards, on Ray.

Stages, in order: `catalogs` (rows -> records), `text` (records -> prompts), `plan` (which clip goes
into which shard, frozen by `planfile`), `embed` (prompts -> states, kept by `textcache`), `encode`
(audio -> codes), `commit` (tars, first commit wins), `finalize` (the manifest).  `run` puts them in
a row; `status`, `inspect` and `verify` look at what is there.  README.md has the whole tour.
"""
