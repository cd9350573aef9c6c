/** Pages by hash, so that links printed by the KFP SDK (`/#/runs/details/ID`) lead to them. */

import { useSyncExternalStore } from 'react'

function subscribe(changed: () => void): () => void {
  window.addEventListener('hashchange', changed)
  return () => window.removeEventListener('hashchange', changed)
}

export interface Place {
  /** Path segments, decoded: `#/runs/details/a%2Fb?step=x` gives `['runs', 'details', 'a/b']`. */
  path: string[]
  query: URLSearchParams
}

export function parsePlace(hash: string): Place {
  const [path = '', query = ''] = hash.replace(/^#/, '').split('?', 2)
  return { path: path.split('/').filter(Boolean).map(decode), query: new URLSearchParams(query) }
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

export function usePlace(): Place {
  return parsePlace(useSyncExternalStore(subscribe, () => window.location.hash))
}

/** Change the query of this page without a new entry in the history. */
export function setQuery(changes: Record<string, string | undefined>): void {
  const { path, query } = parsePlace(window.location.hash)
  for (const [name, value] of Object.entries(changes)) {
    if (value) query.set(name, value)
    else query.delete(name)
  }
  const text = query.toString()
  window.location.replace(`#/${path.map(encodeURIComponent).join('/')}${text ? `?${text}` : ''}`)
}

export const link = {
  run: (id: string) => `#/runs/details/${encodeURIComponent(id)}`,
  experiment: (id: string) => `#/experiments/details/${encodeURIComponent(id)}`,
  pipeline: (id: string, version = '') =>
    `#/pipelines/details/${encodeURIComponent(id)}${version ? `/version/${encodeURIComponent(version)}` : ''}`,
  model: (id: string) => `#/models/${encodeURIComponent(id)}`,
  job: (kind: string, namespace: string, name: string) => `#/training/${kind}/${namespace}/${name}`,
  search: (kind: string, namespace: string, name: string) => `#/tuning/${kind}/${namespace}/${name}`,
  endpoint: (namespace: string, name: string) => `#/endpoints/${namespace}/${name}`,
}
