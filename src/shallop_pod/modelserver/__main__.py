import sys

from shallop_pod.modelserver.server import main

sys.exit(main(sys.argv[1:]))
