"""The control loop: kinds, informers, work queues, workers."""

from shallop.controller.events import EventRecorder
from shallop.controller.informer import Informer, Store
from shallop.controller.kind import Admission, Column, Kind, Part, Resource, Result, Scale, Services, Watch
from shallop.controller.manager import Context, Manager
from shallop.controller.queue import WorkQueue

__all__ = [
    "Admission",
    "Column",
    "Context",
    "EventRecorder",
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
]
