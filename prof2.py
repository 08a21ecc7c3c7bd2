import sys, time, cProfile, pstats
from pathlib import Path
from tsexp.report.store import connect
from tsexp.report import frozen as f
c = connect("sqlite:////work/h/tmp-load/store/mlflow.db")
p = cProfile.Profile(); t = time.process_time(); w = time.time()
p.enable(); f.freeze(c, "tsexp", Path("/work/h/tmp-load/frozen2"), "params.seed = '0'"); p.disable()
print(time.process_time() - t, time.time() - w)
pstats.Stats(p).sort_stats("cumulative").print_stats(60)
