"""Products with packed matrices on the CPU, and how the code for them is found."""

from zpruner.kernels.checks import check_packed as check_packed
from zpruner.kernels.choice import Kernels as Kernels
from zpruner.kernels.choice import choose as choose
from zpruner.kernels.library import KERNEL_ROWS as KERNEL_ROWS
from zpruner.kernels.matrix import DenseMatrix as DenseMatrix
from zpruner.kernels.matrix import PackedMatrix as PackedMatrix
from zpruner.kernels.parts import Codes as Codes
from zpruner.kernels.parts import Layout as Layout
from zpruner.kernels.parts import Parts as Parts
