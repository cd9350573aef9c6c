/** Of very many tasks the few that are drawn. Pure. */

/** More in one place make a browser slow, and nobody reads them. */
export const MOST = 300

const RANK: Record<string, number> = { FAILED: 0, RUNNING: 1, PENDING: 1, CANCELING: 1 }

/** At most ``MOST`` of ``items`` in their order: those that failed before those that run, and these before the others. */
export function pick<T>(items: T[], stateOf: (item: T) => string | undefined): T[] {
  if (items.length <= MOST) return [...items]
  const ranks = items.map((item) => RANK[stateOf(item) ?? ''] ?? 2)
  const chosen = new Set<number>()
  for (const rank of [0, 1, 2]) {
    for (let index = 0; index < items.length && chosen.size < MOST; index++) if (ranks[index] === rank) chosen.add(index)
  }
  return items.filter((_, index) => chosen.has(index))
}
