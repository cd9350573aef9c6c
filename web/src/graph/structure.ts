/** The DAG of a pipeline as nested groups and steps, with the state of each where there is a run. Pure. */

import type { Component, DagTask, PipelineSpec, TaskView } from '../api'
import { show } from '../format'
import { pick } from '../pick'

export type GroupKind = 'dag' | 'loop' | 'condition' | 'iteration'

export interface GraphNode {
  /** The path of the task: `root/for-loop-1[0]/train`. */
  path: string
  label: string
  kind: 'step' | GroupKind
  state: string
  task?: TaskView
  children: GraphNode[]
  /** Between children, by path. */
  edges: { from: string; to: string }[]
  /** Of an iteration: the value it is for. */
  item?: string
  /** Of a loop: how many iterations there are, and how many are drawn. */
  iterations?: number
  /** How many of its tasks are not drawn because there are very many. */
  hidden?: number
}

/** More iterations than this are not drawn one by one: the chosen one stands for all. */
const DRAWN_ITERATIONS = 4

/** What is inside of a group that did not run did not run either. */
function stateOf(task: TaskView | undefined, around: string): string {
  return task?.own_state ?? (NOT_RUN.has(around) ? around : 'WAITING')
}

const NOT_RUN = new Set(['SKIPPED', 'OMITTED', 'CANCELED'])

/** The value of a loop that an iteration is for. */
function itemOf(task: TaskView | undefined): string | undefined {
  const found = Object.entries(task?.input_parameters ?? {}).find(([name]) => name.includes('loop-item'))
  return found && show(found[1])
}

/**
 * Build the graph.
 *
 * @param spec the compiled pipeline.
 * @param tasks what the run has of it so far; none for a pipeline that is only looked at.
 * @param chosen loop path -> iteration to draw, for loops with many iterations.
 */
export function buildGraph(spec: PipelineSpec, tasks: TaskView[], chosen: Record<string, number> = {}): GraphNode {
  const pipeline = spec.pipeline_spec ?? spec
  const byPath = new Map(tasks.map((task) => [task.path, task]))
  const iterations = countIterations(tasks)
  const components = pipeline.components ?? {}

  function dag(component: Component | undefined, path: string, state: string): Pick<GraphNode, 'children' | 'edges' | 'hidden'> {
    const all = Object.entries(component?.dag?.tasks ?? {})
    const found = pick(all, ([name]) => byPath.get(`${path}/${name}`)?.own_state)
    const drawn = new Set(found.map(([name]) => name))
    const children = found.map(([name, task]) => node(name, task, `${path}/${name}`, state))
    const edges = found.flatMap(([name, task]) =>
      needs(task)
        .filter((other) => drawn.has(other))
        .map((other) => ({ from: `${path}/${other}`, to: `${path}/${name}` })),
    )
    return { children, edges, hidden: all.length - found.length }
  }

  function node(name: string, task: DagTask, path: string, around: string): GraphNode {
    const component = components[task.componentRef?.name ?? '']
    const view = byPath.get(path)
    const label = view?.display_name || task.taskInfo?.name || name
    const state = stateOf(view, around)
    const shared = { path, label, state, task: view }
    if (!component?.dag) return { ...shared, kind: 'step', children: [], edges: [] }
    if (!task.parameterIterator && !task.artifactIterator) {
      return { ...shared, kind: task.triggerPolicy?.condition ? 'condition' : 'dag', ...dag(component, path, state) }
    }
    const count = iterations.get(path) ?? 0
    // Before the first iteration exists the body is shown once, as it will be.
    if (count === 0) return { ...shared, kind: 'loop', ...dag(component, path, state), iterations: 0 }
    const drawn = count <= DRAWN_ITERATIONS ? [...Array(count).keys()] : [Math.min(chosen[path] ?? 0, count - 1)]
    const children = drawn.map((index): GraphNode => {
      const own = `${path}[${index}]`
      const one = byPath.get(own)
      const ownState = stateOf(one, state)
      return {
        path: own,
        label: `${label}[${index}]`,
        kind: 'iteration',
        state: ownState,
        task: one,
        item: itemOf(one),
        ...dag(component, own, ownState),
      }
    })
    return { ...shared, kind: 'loop', children, edges: [], iterations: count }
  }

  const root = byPath.get('root')
  return { path: 'root', label: 'root', kind: 'dag', state: stateOf(root, ''), task: root, ...dag(pipeline.root, 'root', '') }
}

function countIterations(tasks: TaskView[]): Map<string, number> {
  const counts = new Map<string, number>()
  for (const { path } of tasks) {
    const match = /^(.*)\[(\d+)\]$/.exec(path)
    if (match) counts.set(match[1]!, Math.max(counts.get(match[1]!) ?? 0, Number(match[2]) + 1))
  }
  return counts
}

/** The names of the tasks that a task waits for: those it names, and the producers of its inputs. */
function needs(task: DagTask): string[] {
  const names = new Set(task.dependentTasks ?? [])
  collectProducers(task.inputs, names)
  return [...names]
}

function collectProducers(value: unknown, names: Set<string>): void {
  if (Array.isArray(value)) for (const item of value) collectProducers(item, names)
  else if (value && typeof value === 'object') {
    for (const [key, item] of Object.entries(value)) {
      if (key === 'producerTask' && typeof item === 'string') names.add(item)
      else collectProducers(item, names)
    }
  }
}

export function* walk(node: GraphNode): Generator<GraphNode> {
  yield node
  for (const child of node.children) yield* walk(child)
}
