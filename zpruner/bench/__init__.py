"""What a packed model saves and costs, beside its controls."""

from zpruner.bench.measure import Bench as Bench
from zpruner.bench.measure import Plan as Plan
from zpruner.bench.measure import bench as bench
from zpruner.bench.measure import row_count as row_count
from zpruner.bench.page import markdown as markdown
