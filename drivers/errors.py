"""What a device can do wrong. Each message says what was looked for, what was found, what to do."""


class DeviceError(Exception):
    """A device did not do what was asked. Catch this at a thread's or process's edge."""


class DriverMissing(DeviceError, ImportError):
    """A vendor library that the driver needs is not installed or does not load."""


class DeviceNotFound(DeviceError, LookupError):
    """The named device is not there. Never replaced by another device."""


class DeviceBusy(DeviceError):
    """The device is there, but somebody else holds it."""


class DeviceRefused(DeviceError, ValueError):
    """The device is there, but is the wrong one or does not accept a setting."""


class DeviceLost(DeviceError, ConnectionError):
    """The device was there and is gone: unplugged, powered off or no longer answering."""


class DeviceTimeout(DeviceError, TimeoutError):
    """The device is there, but did not take or answer a command in time."""
