"""Which variant to ship: every one of them as an offer of quality for bytes and speed, and what follows from that."""

from zpruner.advice.frontier import frontier as frontier
from zpruner.advice.offer import Decode as Decode
from zpruner.advice.offer import Offer as Offer
from zpruner.advice.questions import Answer as Answer
from zpruner.advice.questions import best as best
from zpruner.advice.questions import fastest as fastest
from zpruner.advice.questions import smallest as smallest
