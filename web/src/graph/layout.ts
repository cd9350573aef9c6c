/** Where the nodes go: each group is laid out by itself, then takes its place in the group around it. Pure. */

import dagre from '@dagrejs/dagre'
import type { GraphNode } from './structure'

export const STEP = { width: 208, height: 56 }
const HEADER = 40
const PADDING = 18

export interface Box {
  node: GraphNode
  parent?: string
  x: number
  y: number
  width: number
  height: number
  collapsed: boolean
}

interface Size {
  width: number
  height: number
}

/** Boxes in an order in which parents come before their children; positions are relative to the parent. */
export function layout(root: GraphNode, collapsed: ReadonlySet<string>): Box[] {
  const boxes: Box[] = []
  const inner = new Map<string, { size: Size; at: Map<string, { x: number; y: number }> }>()

  function measure(node: GraphNode): Size {
    if (node.kind === 'step' || collapsed.has(node.path) || node.children.length === 0) return STEP
    const sizes = new Map(node.children.map((child) => [child.path, measure(child)]))
    const graph = new dagre.graphlib.Graph()
    graph.setGraph({ rankdir: 'TB', nodesep: 28, ranksep: 44 })
    graph.setDefaultEdgeLabel(() => ({}))
    for (const [path, { width, height }] of sizes) graph.setNode(path, { width, height })
    for (const { from, to } of node.edges) graph.setEdge(from, to)
    dagre.layout(graph)
    const top = node.path === 'root' ? 0 : HEADER
    const at = new Map<string, { x: number; y: number }>()
    let width = 0
    let height = 0
    for (const [path, size] of sizes) {
      const placed = graph.node(path) as { x: number; y: number }
      const x = placed.x - size.width / 2 + PADDING
      const y = placed.y - size.height / 2 + top + PADDING / 2
      at.set(path, { x, y })
      width = Math.max(width, x + size.width + PADDING)
      height = Math.max(height, y + size.height + PADDING)
    }
    const size = { width: Math.max(width, STEP.width + 2 * PADDING), height }
    inner.set(node.path, { size, at })
    return size
  }

  function place(node: GraphNode, parent: string | undefined): void {
    const found = inner.get(node.path)
    for (const child of node.children) {
      const position = found?.at.get(child.path)
      if (!position) continue
      const opened = inner.get(child.path)
      const isCollapsed = child.kind !== 'step' && !opened
      boxes.push({ node: child, parent, ...position, ...(opened?.size ?? STEP), collapsed: isCollapsed })
      if (opened) place(child, child.path)
    }
  }

  measure(root)
  place(root, undefined)
  return boxes
}
