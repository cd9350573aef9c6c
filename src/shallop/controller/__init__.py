"""The control loop: kinds, informers, work queues, workers."""

from shallop.controller.callers import Callers, own_headers
from shallop.controller.captures import Capture, Captures
from shallop.controller.events import EventRecorder
from shallop.controller.index import Index
from shallop.controller.informer import Change, Informer, Store
from shallop.controller.kind import Admission, Column, Kind, Part, Resource, Result, Scale, Services, Watch
from shallop.controller.manager import Context, Manager
from shallop.controller.queue import WorkQueue

__all__ = [
    "Admission",
    "Callers",
    "Capture",
    "Captures",
    "Change",
    "Column",
    "Context",
    "EventRecorder",
    "Index",
    "Informer",
    "Kind",
    "Manager",
    "Part",
    "Resource",
    "Result",
    "Scale",
    "Services",
    "Store",
    "Watch",
    "WorkQueue",
    "own_headers",
]
