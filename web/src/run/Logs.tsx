import { Group, Loader, SegmentedControl, Text } from '@mantine/core'
import { useEffect, useRef, useState } from 'react'
import { kfp } from '../api'

/** The end of a log is kept; a page that holds all of a gigabyte helps nobody. */
const KEPT = 400_000

/** What a step prints, as it prints it. */
export function Logs({ run, task, pods }: { run: string; task: string; pods: number }) {
  const [attempt, setAttempt] = useState(Math.max(0, pods - 1))
  const [text, setText] = useState('')
  const [state, setState] = useState<'reading' | 'over' | string>('reading')
  const box = useRef<HTMLPreElement>(null)
  const pinned = useRef(true)

  useEffect(() => {
    const stop = new AbortController()
    setText('')
    setState('reading')
    async function read() {
      const response = await fetch(kfp.logUrl(run, task, attempt), { signal: stop.signal })
      if (!response.ok || !response.body) throw new Error(await response.text())
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
      for (;;) {
        const { done, value } = await reader.read()
        if (done) break
        setText((old) => (old + value).slice(-KEPT))
      }
      setState('over')
    }
    read().catch((error: Error) => {
      if (!stop.signal.aborted) setState(error.message)
    })
    return () => stop.abort()
  }, [run, task, attempt])

  useEffect(() => {
    if (pinned.current && box.current) box.current.scrollTop = box.current.scrollHeight
  }, [text])

  return (
    <>
      {pods > 1 && (
        <SegmentedControl
          size="xs"
          mb="xs"
          aria-label="Attempt"
          value={String(attempt)}
          onChange={(value) => setAttempt(Number(value))}
          data={[...Array(pods).keys()].map((index) => ({ value: String(index), label: `Attempt ${index + 1}` }))}
        />
      )}
      <pre
        className="log"
        ref={box}
        tabIndex={0}
        aria-label="Log"
        data-testid="log"
        onScroll={({ currentTarget: it }) => {
          pinned.current = it.scrollHeight - it.scrollTop - it.clientHeight < 24
        }}
      >
        {text || (state === 'over' ? 'This step printed nothing.' : '')}
        {state !== 'reading' && state !== 'over' && `The log cannot be read: ${state}`}
      </pre>
      {state === 'reading' && (
        <Group gap={6} mt={6}><Loader size={12} /><Text size="xs" c="dimmed">following</Text></Group>
      )}
    </>
  )
}
