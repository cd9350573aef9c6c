/** What makes pages move: server-sent events, closed while nobody looks. */

import { useQueryClient } from '@tanstack/react-query'
import { useEffect, useRef, useState, useSyncExternalStore } from 'react'
import { kfp, type RunMessage, type TaskView } from './api'

function subscribeVisibility(changed: () => void): () => void {
  document.addEventListener('visibilitychange', changed)
  return () => document.removeEventListener('visibilitychange', changed)
}

export function useVisible(): boolean {
  return useSyncExternalStore(subscribeVisibility, () => document.visibilityState === 'visible')
}

/** Read again what a changed object shows in; returns whether the connection stands. */
export function useLiveObjects(): boolean {
  const queries = useQueryClient()
  const visible = useVisible()
  const [connected, setConnected] = useState(true)
  useEffect(() => {
    if (!visible) return
    const source = new EventSource('/ui/v1/stream')
    source.addEventListener('changed', (event) => {
      const kinds = JSON.parse((event as MessageEvent<string>).data) as string[]
      void queries.invalidateQueries({ queryKey: ['overview'] })
      if (kinds.includes('Pod')) {
        for (const name of ['runs', 'training', 'searches']) void queries.invalidateQueries({ queryKey: [name] })
      }
      void queries.invalidateQueries({ queryKey: ['endpoints'] })
    })
    source.onopen = () => setConnected(true)
    source.onerror = () => setConnected(false)
    return () => source.close()
  }, [queries, visible])
  return connected
}

export interface LiveRun {
  run?: RunMessage
  tasks: TaskView[]
  ended: boolean
}

/** A run and its tasks as they change. ``again`` starts over, after a retry. */
export function useLiveRun(id: string, again: number): LiveRun {
  const [live, setLive] = useState<LiveRun>({ tasks: [], ended: false })
  const tasks = useRef(new Map<string, TaskView>())
  useEffect(() => {
    tasks.current = new Map()
    setLive({ tasks: [], ended: false })
    const source = new EventSource(kfp.watchUrl(id))
    source.addEventListener('run', (event) => {
      const run = JSON.parse((event as MessageEvent<string>).data) as RunMessage
      setLive((old) => ({ ...old, run }))
    })
    source.addEventListener('tasks', (event) => {
      for (const task of JSON.parse((event as MessageEvent<string>).data) as TaskView[]) {
        tasks.current.set(task.task_id, task)
      }
      const all = [...tasks.current.values()]
      setLive((old) => ({ ...old, tasks: all }))
    })
    source.addEventListener('end', () => {
      source.close()
      setLive((old) => ({ ...old, ended: true }))
    })
    return () => source.close()
  }, [id, again])
  return live
}

/** The time, told again every ``everyMs`` while ``active``. */
export function useNow(active: boolean, everyMs = 1000): number {
  const [now, setNow] = useState(Date.now)
  useEffect(() => {
    if (!active) return
    setNow(Date.now())
    const timer = setInterval(() => setNow(Date.now()), everyMs)
    return () => clearInterval(timer)
  }, [active, everyMs])
  return now
}
