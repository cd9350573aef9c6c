/** Times, durations, sizes and values as people read them. */

/** The instant in milliseconds; undefined for the epoch, which is how the API writes "not yet". */
export function instant(time: string | undefined): number | undefined {
  const value = time ? Date.parse(time) : NaN
  return Number.isNaN(value) || value <= 0 ? undefined : value
}

export function duration(ms: number): string {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`
  const seconds = ms / 1000
  if (seconds < 60) return `${seconds.toFixed(1)} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
}

export function between(start: string | undefined, end: string | undefined, now = Date.now()): string {
  const from = instant(start)
  return from === undefined ? '–' : duration((instant(end) ?? now) - from)
}

/** As `between`, of times that Kubernetes writes in whole seconds. */
export function seconds(start: string, end: string, now: number): string {
  const text = between(start, end, now)
  return end && text === '0 ms' ? '< 1 s' : text
}

export function ago(ms: number | undefined, now = Date.now()): string {
  if (ms === undefined) return '–'
  const seconds = Math.max(0, (now - ms) / 1000)
  if (seconds < 10) return 'just now'
  if (seconds < 60) return `${Math.floor(seconds)} s ago`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`
  return new Date(ms).toLocaleDateString(undefined, { year: 'numeric', month: 'short', day: 'numeric' })
}

export function size(bytes: number): string {
  const units = ['B', 'KB', 'MB', 'GB', 'TB']
  let value = bytes
  let unit = 0
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000
    unit += 1
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`
}

export function number(value: number): string {
  if (Number.isInteger(value)) return value.toLocaleString('en-US')
  return Math.abs(value) >= 1e-4 && Math.abs(value) < 1e6 ? String(Number(value.toPrecision(5))) : value.toExponential(3)
}

export function show(value: unknown): string {
  if (typeof value === 'string') return value
  if (typeof value === 'number') return number(value)
  return JSON.stringify(value)
}

/** The line that says what went wrong: the last one of a traceback, or the first of a message. */
export function headline(message: string): string {
  const lines = message.split('\n').map((line) => line.trim()).filter(Boolean)
  const isTrace = lines.some((line) => line.startsWith('File "') || line.startsWith('Traceback'))
  return (isTrace ? lines.at(-1) : lines[0]) ?? ''
}
