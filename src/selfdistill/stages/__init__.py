"""One module per stage: read the spec, call one domain function, write the payload, return the summary.

`main(job)` is all a stage is; `selfdistill.run.launch` does the rest. `RESUMES = True` keeps what an interrupted
run left behind; `DISTRIBUTED = True` lets several processes share the work. Heavy imports stand inside the functions,
so that a sealed artifact costs no torch.
"""
