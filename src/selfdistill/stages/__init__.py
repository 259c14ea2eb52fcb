"""One module per stage: read the spec, call one domain function, write the payload, return the summary.

A stage is one function `main(job)`; `selfdistill.run.launch` does the rest. `RESUMES = True`: an interrupted run is
continued, not started over. `DISTRIBUTED = True`: several processes may divide the work. `shared/` holds what several
stages use.
"""
